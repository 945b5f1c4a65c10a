package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

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
}

// Control is what the control routes do.
type Control interface {
	Connect(ctx context.Context, multiaddr string) (Peer, error)
	AddModel(ctx context.Context, ref string, progress func(Progress)) (Model, error)
	RemoveModel(ctx context.Context, ref string) (Model, error)
	PullModel(ctx context.Context, ref string, progress func(Progress)) (Model, error)
}

// Handler returns the routes under /mesh/v1/.
func Handler(n Node, c Control, g Guard) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /mesh/v1/status", func(w http.ResponseWriter, r *http.Request) { answer(w, n.Status(), nil) })
	mux.HandleFunc("GET /mesh/v1/peers", func(w http.ResponseWriter, r *http.Request) { answer(w, n.Peers(), nil) })
	mux.HandleFunc("GET /mesh/v1/models", func(w http.ResponseWriter, r *http.Request) {
		models, err := n.Models(r.Context())
		answer(w, models, err)
	})
	mux.HandleFunc("GET /mesh/v1/receipts", func(w http.ResponseWriter, r *http.Request) {
		limit, err := strconv.Atoi(r.URL.Query().Get("limit"))
		if err != nil || limit < 1 || limit > 1000 {
			limit = 20
		}
		receipts, err := n.Receipts(mesh.Hash{}, limit)
		answer(w, receipts, err)
	})
	mux.HandleFunc("GET /mesh/v1/receipts/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, err := mesh.ParseHash(r.PathValue("id"))
		if err != nil {
			refuse(w, http.StatusBadRequest, "invalid_id", err.Error())
			return
		}
		receipts, err := n.Receipts(id, 1000)
		answer(w, receipts, err)
	})
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
	mux.HandleFunc("/mesh/v1/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, "not_found", "no such call: "+r.Method+" "+short(r.URL.Path))
	})
	return mux
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
	case err != nil:
		refuse(w, http.StatusBadRequest, "failed", err.Error())
	default:
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		_ = enc.Encode(doc)
	}
}
