package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/gonka-mesh/mesh"
)

// ErrNotFound is returned by a Node for what it does not have.
var ErrNotFound = errors.New("not found")

// Node is what the read routes show.
type Node interface {
	Status() Status
	Peers() []Peer
	Models(ctx context.Context) ([]Model, error)
	Receipts(request mesh.Hash, limit int) ([]Receipt, error) // zero hash: the newest
	Requests(prefix string) ([]mesh.Hash, error)              // with receipts, that begin so in hex; two at most
	VerifyReceipt(ctx context.Context, request mesh.Hash) (Verification, error)
	VerifySigned(ctx context.Context, receipts [][]byte) Verification // as in Receipt.Signed, of one answer
}

// Control is what the control routes do.
type Control interface {
	Connect(ctx context.Context, multiaddr string) (Peer, error)
	AddModel(ctx context.Context, ref string, progress func(Progress)) (Model, error)
	RemoveModel(ctx context.Context, ref string) (Model, error)
	PullModel(ctx context.Context, ref string, progress func(Progress)) (Model, error)
}

// Handler returns the routes under /mesh/v1/.
func Handler(n Node, c Control, l Ledger, g Guard) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /mesh/v1/status", func(w http.ResponseWriter, r *http.Request) { answer(w, statusOf(r.Context(), n, l), nil) })
	mux.HandleFunc("GET /mesh/v1/peers", func(w http.ResponseWriter, r *http.Request) { answer(w, n.Peers(), nil) })
	mux.HandleFunc("GET /mesh/v1/models", func(w http.ResponseWriter, r *http.Request) {
		models, err := n.Models(r.Context())
		answer(w, models, err)
	})
	receiptRoutes(mux, n, g)
	controlRoutes(mux, c, g)
	ledgerRoutes(mux, l, g)
	mux.Handle("/mesh/v1/", Nothing)
	return mux
}

func receiptRoutes(mux *http.ServeMux, n Node, g Guard) {
	mux.HandleFunc("GET /mesh/v1/receipts", func(w http.ResponseWriter, r *http.Request) {
		limit, err := strconv.Atoi(r.URL.Query().Get("limit"))
		if err != nil || limit < 1 || limit > 1000 {
			limit = 20
		}
		receipts, err := n.Receipts(mesh.Hash{}, limit)
		answer(w, receipts, err)
	})
	mux.HandleFunc("GET /mesh/v1/receipts/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, err := requestID(n, r.PathValue("id"))
		if err != nil {
			answer(w, nil, err)
			return
		}
		receipts, err := n.Receipts(id, 1000)
		answer(w, receipts, err)
	})
	mux.HandleFunc("GET /mesh/v1/receipts/{id}/verify", func(w http.ResponseWriter, r *http.Request) {
		id, err := requestID(n, r.PathValue("id"))
		if err != nil {
			answer(w, nil, err)
			return
		}
		doc, err := n.VerifyReceipt(r.Context(), id)
		answer(w, doc, err)
	})
	// A list of anybody's receipts makes the node ask their hosts.
	mux.HandleFunc("POST /mesh/v1/receipts/verify", g.Control(func(w http.ResponseWriter, r *http.Request) {
		var in []struct {
			Signed []byte `json:"signed"` // of a Receipt; its other fields say the same again
		}
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, MaxReceipts)).Decode(&in); err != nil || len(in) == 0 || len(in) > 1000 {
			refuse(w, http.StatusBadRequest, "invalid_body", "want the receipts of one answer, as `mesh receipt show ID --json` writes them")
			return
		}
		var signed [][]byte
		for _, one := range in {
			signed = append(signed, one.Signed)
		}
		answer(w, n.VerifySigned(r.Context(), signed), nil)
	}))
}

func controlRoutes(mux *http.ServeMux, c Control, g Guard) {
	mux.HandleFunc("POST /mesh/v1/peers", g.Control(func(w http.ResponseWriter, r *http.Request) {
		if ref, ok := readRef(w, r); ok {
			peer, err := c.Connect(r.Context(), ref)
			answer(w, peer, err)
		}
	}))
	mux.HandleFunc("POST /mesh/v1/models", g.Control(stream(c.AddModel)))
	mux.HandleFunc("POST /mesh/v1/models/pull", g.Control(stream(c.PullModel)))
	mux.HandleFunc("DELETE /mesh/v1/models/{ref}", g.Control(func(w http.ResponseWriter, r *http.Request) {
		m, err := c.RemoveModel(r.Context(), r.PathValue("ref"))
		answer(w, m, err)
	}))
}

// Nothing answers where there is nothing.
var Nothing = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	refuse(w, http.StatusNotFound, "not_found", "there is no "+short(r.Method)+" "+short(r.URL.Path)+"; programs talk to /v1 (OpenAI dialect), docs/operate.md has the rest")
})

// CodeStarting is the code of a refusal of a node that is not up yet.
const CodeStarting = "starting"

// Starting answers for next until a node is up.
func Starting(up *atomic.Bool, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !up.Load() {
			w.Header().Set("Retry-After", "1")
			refuse(w, http.StatusServiceUnavailable, CodeStarting, "this node is starting: it loads its models and joins the network; ask again in a moment")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// ledgerPatience is how long a node may ask its peers about the ledger for its status.
const ledgerPatience = 3 * time.Second

// statusOf adds to what a node says of itself how it stands with the ledger.
func statusOf(ctx context.Context, n Node, l Ledger) Status {
	s := n.Status()
	ctx, cancel := context.WithTimeout(ctx, ledgerPatience)
	defer cancel()
	doc, err := l.LedgerStatus(ctx)
	if errors.Is(err, ErrNoLedger) {
		return s
	}
	if err != nil {
		doc.Error = err.Error()
	}
	s.Ledger = &doc
	return s
}

// MaxReceipts bounds the receipts of an answer as a document, in bytes.
const MaxReceipts = 4 << 20

// MinShort is how many digits of an ID stand for it at least.
const MinShort = 6

// requestID returns the request that an ID, or the beginning of one, stands for.
func requestID(n Node, id string) (mesh.Hash, error) {
	hash, err := mesh.ParseHash(id)
	if err == nil || len(id) < MinShort {
		return hash, err
	}
	found, err := n.Requests(id)
	switch {
	case err != nil:
		return hash, err
	case len(found) == 0:
		return hash, fmt.Errorf("receipt %.70s: %w", id, ErrNotFound)
	case len(found) > 1:
		return hash, fmt.Errorf("%s is the beginning of receipts %s and %s; type more digits", id, found[0], found[1])
	}
	return found[0], nil
}

// ref is the body of control calls: a multiaddress, a file, a name or a hash.
type ref struct {
	Ref string `json:"ref"`
}

func readRef(w http.ResponseWriter, r *http.Request) (string, bool) {
	var in ref
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil || in.Ref == "" {
		refuse(w, http.StatusBadRequest, "invalid_body", `want {"ref": "…"}`)
		return "", false
	}
	return in.Ref, true
}

// stream answers with one JSON line per step of progress.
func stream(op func(context.Context, string, func(Progress)) (Model, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ref, ok := readRef(w, r)
		if !ok {
			return
		}
		w.Header().Set("Content-Type", "application/x-ndjson")
		flush := http.NewResponseController(w)
		line := func(p Progress) {
			_ = json.NewEncoder(w).Encode(p)
			_ = flush.Flush()
		}
		m, err := op(r.Context(), ref, line)
		if err != nil {
			line(Progress{Error: err.Error()})
			return
		}
		line(Progress{Done: true, Model: &m})
	}
}

func answer(w http.ResponseWriter, doc any, err error) {
	switch {
	case errors.Is(err, ErrNotFound):
		refuse(w, http.StatusNotFound, "not_found", err.Error())
	case errors.Is(err, ErrNoLedger):
		refuse(w, http.StatusNotFound, "no_ledger", err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		refuse(w, http.StatusGatewayTimeout, "timeout", err.Error())
	case err != nil:
		refuse(w, http.StatusBadRequest, "failed", err.Error())
	default:
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		_ = enc.Encode(doc)
	}
}
