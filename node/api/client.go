package api

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gonka-mesh/mesh"
	"github.com/gonka-mesh/mesh/internal/plainly"
)

// Client calls the API of a running node.
type Client struct {
	Base  string // http://ADDR:PORT; empty: no node runs in Home
	Home  string // the folder in which a node was looked for
	Key   string // API key, if the node has one
	Token string // content of api.token in the node's home, for control and wallet calls
	HTTP  *http.Client
}

// followNone asks one place, the one that was named: a redirect would take token and key
// elsewhere.
var followNone = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// Error is a refusal of a node.
type Error struct {
	Status  int
	Code    string
	Message string
}

func (e *Error) Error() string { return e.Message }

// NotRunningError says that nobody answers at the address, or that no node runs in
// the home folder.
type NotRunningError struct{ Base, Home string }

func (e *NotRunningError) Error() string {
	if e.Base == "" {
		return fmt.Sprintf("no node runs in %s; start one with `mesh up --home %s`, or name another with --api", e.Home, e.Home)
	}
	return fmt.Sprintf("no node answers at %s; start one with `mesh up`, or name another with --api", e.Base)
}

// statusPatience is how long a node may take to say how it is: it asks its peers no longer
// than ledgerPatience. Another program may listen in its place, and never answer.
const statusPatience = 15 * time.Second

// Status returns the node's status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	var out Status
	return out, c.call(ctx, http.MethodGet, "/mesh/v1/status", nil, &out)
}

// Peers returns the connected peers.
func (c *Client) Peers(ctx context.Context) ([]Peer, error) {
	var out []Peer
	return out, c.call(ctx, http.MethodGet, "/mesh/v1/peers", nil, &out)
}

// Models returns the models that the node has or knows of.
func (c *Client) Models(ctx context.Context) ([]Model, error) {
	var out []Model
	return out, c.call(ctx, http.MethodGet, "/mesh/v1/models", nil, &out)
}

// Receipts returns the newest receipts.
func (c *Client) Receipts(ctx context.Context, limit int) ([]Receipt, error) {
	var out []Receipt
	return out, c.call(ctx, http.MethodGet, fmt.Sprintf("/mesh/v1/receipts?limit=%d", limit), nil, &out)
}

// Receipt returns the segments of one answer.
func (c *Client) Receipt(ctx context.Context, id mesh.Hash) ([]Receipt, error) {
	return c.FindReceipt(ctx, id.String())
}

// FindReceipt returns the segments of the answer whose ID begins so.
func (c *Client) FindReceipt(ctx context.Context, id string) ([]Receipt, error) {
	var out []Receipt
	return out, c.call(ctx, http.MethodGet, "/mesh/v1/receipts/"+url.PathEscape(id), nil, &out)
}

// VerifyReceipt checks the receipts of the answer whose ID begins so.
func (c *Client) VerifyReceipt(ctx context.Context, id string) (Verification, error) {
	var out Verification
	return out, c.call(ctx, http.MethodGet, "/mesh/v1/receipts/"+url.PathEscape(id)+"/verify", nil, &out)
}

// VerifyReceipts checks receipts that the node need not have.
func (c *Client) VerifyReceipts(ctx context.Context, receipts json.RawMessage) (Verification, error) {
	var out Verification
	return out, c.call(ctx, http.MethodPost, "/mesh/v1/receipts/verify", receipts, &out)
}

// Connect makes the node dial a multiaddress.
func (c *Client) Connect(ctx context.Context, multiaddr string) (Peer, error) {
	var out Peer
	return out, c.call(ctx, http.MethodPost, "/mesh/v1/peers", ref{multiaddr}, &out)
}

// RemoveModel makes the node stop serving a model and forget it.
func (c *Client) RemoveModel(ctx context.Context, model string) (Model, error) {
	var out Model
	return out, c.call(ctx, http.MethodDelete, "/mesh/v1/models/"+url.PathEscape(model), nil, &out)
}

// AddModel makes the node serve a file or a model of the mesh.
func (c *Client) AddModel(ctx context.Context, model string, progress func(Progress)) (Model, error) {
	return c.long(ctx, "/mesh/v1/models", model, progress)
}

// PullModel makes the node fetch a model's file from its peers.
func (c *Client) PullModel(ctx context.Context, model string, progress func(Progress)) (Model, error) {
	return c.long(ctx, "/mesh/v1/models/pull", model, progress)
}

// Do sends any request to the node with its key and turns an error document into
// an error. The caller closes the body.
func (c *Client) Do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	if c.Base == "" {
		return nil, &NotRunningError{Home: c.Home}
	}
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimRight(c.Base, "/")+path, in)
	if err != nil {
		return nil, fmt.Errorf("API address %s: %w", c.Base, err)
	}
	req.Header.Set("Content-Type", "application/json")
	if c.Key != "" {
		req.Header.Set("Authorization", "Bearer "+c.Key)
	}
	if c.Token != "" {
		req.Header.Set("Mesh-Token", c.Token)
	}
	client := c.HTTP
	if client == nil {
		client = followNone
	}
	resp, err := client.Do(req)
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return nil, &NotRunningError{Base: c.Base}
	}
	if err != nil {
		return nil, c.broke(err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		var doc errorDocument
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		if json.Unmarshal(b, &doc) == nil && doc.Error.Message != "" {
			if doc.Error.Code == codeToken && c.Token == "" {
				return nil, fmt.Errorf("the node at %s wants the token of its home folder for this, and it is none that runs in %s; name its folder with --home", c.Base, cmp.Or(c.Home, "a folder that was named"))
			}
			return nil, &Error{resp.StatusCode, doc.Error.Code, doc.Error.Message}
		}
		return nil, fmt.Errorf("what answers at %s is no mesh node (%s); name one with --api", c.Base, strings.ToLower(resp.Status))
	}
	return resp, nil
}

// broke says that the node, or what is in its place, does not answer to the end.
func (c *Client) broke(err error) error {
	return fmt.Errorf("the node at %s does not answer as it should: %w; see its log, or name another with --api", c.Base, plainly.Said(err))
}

func (c *Client) call(ctx context.Context, method, path string, body, out any) error {
	resp, err := c.Do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return c.broke(err)
	}
	return nil
}

func (c *Client) long(ctx context.Context, path, model string, progress func(Progress)) (Model, error) {
	resp, err := c.Do(ctx, http.MethodPost, path, ref{model})
	if err != nil {
		return Model{}, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var p Progress
		if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
			return Model{}, fmt.Errorf("read progress: %w", err)
		}
		switch {
		case p.Error != "":
			return Model{}, errors.New(p.Error)
		case p.Done && p.Model != nil:
			return *p.Model, nil
		case progress != nil:
			progress(p)
		}
	}
	return Model{}, c.broke(cmp.Or(lines.Err(), io.ErrUnexpectedEOF))
}
