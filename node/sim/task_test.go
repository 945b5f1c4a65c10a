package sim

import (
	"errors"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh/inference"
)

// findUnknown: a model that nobody has heard of is served by one host, which says so
// to nobody and is not connected to the node that asks. The question goes out as a
// task, by ID and by name, and is answered.
func (c *crowd) findUnknown(t *testing.T, asker *member) {
	for _, named := range []bool{false, true} {
		name := map[bool]string{false: "orchid", true: "gentian"}[named]
		var keeper *member
		for _, m := range c.members[c.full/2 : c.full] {
			if m.engine == nil && !asker.Net.Connected(m.Net.Address()) {
				keeper = m
				break
			}
		}
		if keeper == nil {
			t.Error("the asking node is connected to everybody")
			return
		}
		e := &engine{name: name, slots: 1, pace: pace}
		if err := keeper.Host.Add(e, prices); err != nil { // not Serve: no advert, no provider record
			t.Fatal(err)
		}
		a := question("What is rare?", 30)
		if a.Model = modelOf(name).String(); named {
			a.Model = name
		}
		if n := len(asker.Net.Adverts(modelOf(name))); n > 0 {
			t.Errorf("%d adverts of a model that nobody advertises", n)
		}
		got, err := asker.ask(t.Context(), a)
		if err == nil {
			err = asker.verify(a, got)
		}
		if err != nil {
			t.Errorf("a task (by name: %v): %v", named, err)
			continue
		}
		t.Logf("a task (by name: %v) was answered, first token after %s", named, got.first)
		if len(got.hosts) != 1 || got.hosts[0] != keeper.Net.Address() {
			t.Errorf("answered by %v, not by the only host of the model", got.hosts)
		}
	}
}

// TestNobody: a model that nobody has is an error in time, not a wait without end.
func TestNobody(t *testing.T) {
	small(t, parrot, nil, func(t *testing.T, w *world, asker *member) {
		tests := []struct {
			model string
			want  error
		}{
			{"phoenix", inference.ErrUnknownModel},
			{modelOf("phoenix").String(), inference.ErrUnknownModel},
		}
		for _, tt := range tests {
			a := question("Are you there?", 10)
			a.Model = tt.model
			begin := time.Now()
			if _, err := asker.ask(t.Context(), a); !errors.Is(err, tt.want) {
				t.Errorf("%s: %v, want %v", tt.model, err, tt.want)
			}
			if took := time.Since(begin); took > 8*time.Second {
				t.Errorf("%s: known after %s", tt.model, took)
			}
		}
	})
}
