package ledger

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

var updateEscrow = flag.Bool("update-escrow", false, "write testdata/escrow_*.txt anew")

// TestEscrowTranscripts plays the stories in testdata/escrow_*.txt: a line that begins
// with > is done, and what comes of it follows. Amounts are ngonka.
//
//	> fund WHO AMOUNT           > host WHO [OWNER]       registers one
//	> epoch                     the next one begins; pay settles the one before
//	> open WHO ESCROW AMOUNT [HOST=CAP ...]
//	> top WHO ESCROW AMOUNT     > lane WHO ESCROW HOST CAP     > close WHO ESCROW
//	> settle HOST EPOCH ESCROW=AMOUNT ...                vouchers are the owner's
//	> left HOST ESCROW EPOCH    > show ESCROW            > balance WHO
//	> run WHO RUN BOND MAX REWARD     > join WHO RUN     > leave WHO RUN
//	> trace WHO RUN ROUND       > post WHO RUN ROUND HASH      > end WHO RUN
//	> rounds RUN
func TestEscrowTranscripts(t *testing.T) {
	for _, name := range []string{"story", "lanes", "closing", "run"} {
		t.Run(name, func(t *testing.T) {
			file := "testdata/escrow_" + name + ".txt"
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			p := &escrowPlay{escrowWorld: newEscrowWorld(t, Config{}), ids: make(map[string]mesh.Hash), owner: make(map[string]string)}
			var got bytes.Buffer
			for line := range strings.Lines(string(want)) {
				switch {
				case strings.HasPrefix(line, "> "):
					got.WriteString(line)
					fmt.Fprintln(&got, p.named(p.step(strings.Fields(line[2:]))))
					p.check()
				case strings.HasPrefix(line, "#") || line == "\n":
					got.WriteString(line)
				}
			}
			if *updateEscrow {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got.String() != string(want) {
				t.Errorf("%s: got\n%s", file, got.String())
			}
		})
	}
}

type escrowPlay struct {
	*escrowWorld
	ids   map[string]mesh.Hash // escrows and runs
	owner map[string]string
}

// named puts names in the place of addresses and hashes.
func (p *escrowPlay) named(s string) string {
	for _, name := range p.names {
		s = strings.ReplaceAll(s, p.address(name).Short(), name)
	}
	for name, id := range p.ids {
		s = strings.ReplaceAll(s, id.Short(), name)
	}
	return s
}

func (p *escrowPlay) number(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		p.t.Fatal(err)
	}
	return n
}

func (p *escrowPlay) id(name string) []byte {
	id, ok := p.ids[name]
	if !ok {
		p.t.Fatalf("nothing is called %s", name)
	}
	return id[:]
}

func (p *escrowPlay) lane(host, limit string) *ledgerpb.Lane {
	a := p.address(host)
	return &ledgerpb.Lane{Host: a[:], Cap: p.number(limit)}
}

func (p *escrowPlay) step(f []string) string {
	switch f[0] {
	case "fund":
		p.fund(f[1], p.number(f[2]))
		return "ok"
	case "host":
		p.host(f[1], strings.Join(f[2:], ""))
		return "ok"
	case "epoch":
		p.turn()
		return fmt.Sprintf("epoch %d from height %d", p.b.epoch.GetEpoch(), p.b.epoch.GetStart())
	case "pay":
		out := p.pay()
		return fmt.Sprintf("%d settlements, %d receipts, %d paid", out.settlements, out.receipts, out.paid)
	case "left":
		lane, err := p.left(f[1], p.ids[f[2]], p.number(f[3]))
		if err != nil {
			return err.Error()
		}
		return fmt.Sprintf("%d of the pool, %d of its own", lane.Implicit, lane.Explicit)
	case "show":
		e, free, err := NewView(p.o).Escrow(p.ids[f[1]])
		if err != nil {
			p.t.Fatal(err)
		}
		if e == nil {
			return "is no more"
		}
		return fmt.Sprintf("amount %d: lanes %d, pool %d, previous %d of which %d claimed, free %d",
			e.GetAmount(), e.GetLanes(), e.GetPool(), e.GetPrevious(), e.GetClaimed(), free)
	case "balance":
		return fmt.Sprint(p.o.account(p.address(f[1])).GetBalance())
	case "rounds":
		run, err := NewView(p.o).Run(p.ids[f[1]])
		if err != nil {
			p.t.Fatal(err)
		}
		return fmt.Sprintf("round %d, %d members of which %d leave", run.GetRound(), run.GetMembers(), run.GetLeaving())
	}
	err := p.do(f[1], p.transaction(f))
	switch {
	case err != nil:
		return "refused: " + err.Error()
	case f[0] == "open" || f[0] == "run":
		p.ids[f[2]], p.owner[f[2]] = p.lastID, f[1]
	}
	return "ok"
}

func (p *escrowPlay) transaction(f []string) *ledgerpb.Tx {
	switch f[0] {
	case "open":
		open := &ledgerpb.OpenEscrow{Amount: p.number(f[3])}
		for _, l := range f[4:] {
			host, limit, _ := strings.Cut(l, "=")
			open.Lanes = append(open.Lanes, p.lane(host, limit))
		}
		sortLanes(open.Lanes)
		return &ledgerpb.Tx{Action: &ledgerpb.Tx_OpenEscrow{OpenEscrow: open}}
	case "top":
		return &ledgerpb.Tx{Action: &ledgerpb.Tx_TopEscrow{TopEscrow: &ledgerpb.TopEscrow{Escrow: p.id(f[2]), Amount: p.number(f[3])}}}
	case "lane":
		return &ledgerpb.Tx{Action: &ledgerpb.Tx_SetLane{SetLane: &ledgerpb.SetLane{Escrow: p.id(f[2]), Lane: p.lane(f[3], f[4])}}}
	case "close":
		return &ledgerpb.Tx{Action: &ledgerpb.Tx_CloseEscrow{CloseEscrow: &ledgerpb.CloseEscrow{Escrow: p.id(f[2])}}}
	case "settle":
		amounts := make(map[mesh.Hash]uint64)
		owners := make(map[mesh.Hash]string)
		var ids []mesh.Hash
		for _, l := range f[3:] {
			name, amount, _ := strings.Cut(l, "=")
			ids = append(ids, p.ids[name])
			amounts[p.ids[name]], owners[p.ids[name]] = p.number(amount), p.owner[name]
		}
		tx := settleTx(p.number(f[2]))
		for _, id := range sortedHashes(ids) {
			line := p.line(owners[id], f[1], id, p.number(f[2]), amounts[id])
			tx.GetSettle().Lines = append(tx.GetSettle().Lines, line)
		}
		return tx
	case "run":
		return openRunTx(uint32(p.number(f[4])), p.number(f[3]), p.number(f[5]))
	case "join":
		return joinTx(mesh.Hash(p.id(f[2])))
	case "leave":
		return leaveTx(mesh.Hash(p.id(f[2])))
	case "trace":
		return traceTx(mesh.Hash(p.id(f[2])), p.number(f[3]), f[1])
	case "post":
		return postTx(mesh.Hash(p.id(f[2])), p.number(f[3]), f[4])
	case "end":
		return closeRunTx(mesh.Hash(p.id(f[2])))
	}
	p.t.Fatalf("unknown step %v", f)
	return nil
}
