package main

import (
	"testing"

	"github.com/gonka-mesh/mesh/node/api"
)

// TestTallyWords: while a vote is open nothing is counted, which is not that nobody voted.
func TestTallyWords(t *testing.T) {
	sums := map[string]uint64{"yes": 3, "no": 1, "veto": 0, "all": 4}
	for _, tt := range []struct {
		p    api.Proposal
		want string
	}{
		{api.Proposal{Status: "voting", Ballots: make([]api.Ballot, 4)}, "4 ballots, counted at the end"},
		{api.Proposal{Status: "voting"}, "0 ballots, counted at the end"},
		{api.Proposal{Status: "voting", Proven: true}, "counted at the end"},
		{api.Proposal{Status: "passed", Tally: sums, Proven: true}, "3/1/0/4"},
	} {
		if got := tally(tt.p); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.p, got, tt.want)
		}
	}
}
