package main

import (
	"strings"
	"testing"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/node/api"
)

// TestReceiptWords: what nobody pays is free, and a host that was lost did not end in 1970.
func TestReceiptWords(t *testing.T) {
	start := time.Now().Add(-time.Hour)
	whole := api.Receipt{Price: 53_300, Escrow: mesh.Hash{1}, Started: start, FirstToken: start.Add(time.Second), Ended: start.Add(2 * time.Second)}
	lent, lost := whole, whole
	lent.Escrow = mesh.Hash{}
	lost.FirstToken, lost.Ended = time.Time{}, time.Time{}
	for _, tt := range []struct {
		name               string
		r                  api.Receipt
		paid, price, never string
		ended              time.Time
	}{
		{"paid", whole, "0.0000533 GNK", "first token after 1s, all after 2s", "free", whole.Ended},
		{"lent", lent, "free", "free: no escrow pays the 0.0000533 GNK", "never", whole.Ended},
		{"lost", lost, "0.0000533 GNK", "0.0000533 GNK", "after", start},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			if err := printReceipt(&out, tt.r); err != nil {
				t.Fatal(err)
			}
			text, _, _ := strings.Cut(out.String()[strings.Index(out.String(), "price"):], "\ncheck")
			if got := paid(tt.r); got != tt.paid || !strings.Contains(text, tt.price) || strings.Contains(text, tt.never) {
				t.Errorf("paid %q, want %q; want %q and not %q in\n%s", got, tt.paid, tt.price, tt.never, text)
			}
			if got := ended(tt.r); !got.Equal(tt.ended) {
				t.Errorf("ended at %s, want %s", got, tt.ended)
			}
		})
	}
}
