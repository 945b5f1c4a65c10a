package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/gonka-mesh/mesh"
)

// Client calls the API of a running node.
type Client struct {
	Base  string // http://ADDR:PORT
	Key   string // API key, if the node has one
	Token string // content of api.token in the node's home, for control calls
	HTTP  *http.Client
}

// NotRunningError says that nobody answers at the address.
type NotRunningError struct{ Base string }

func (e *NotRunningError) Error() string {
	return fmt.Sprintf("no node answers at %s; start one with `mesh up`, or name another with --api", e.Base)
}

// Status returns the node's status.
func (c *Client) Status(ctx context.Context) (Status, error) {
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
	var out []Receipt
	return out, c.call(ctx, http.MethodGet, "/mesh/v1/receipts/"+id.String(), nil, &out)
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
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return nil, &NotRunningError{c.Base}
	}
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", path, err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		var doc errorDocument
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		if json.Unmarshal(b, &doc) == nil && doc.Error.Message != "" {
			return nil, errors.New(doc.Error.Message)
		}
		return nil, fmt.Errorf("call %s: %s; is this a mesh node?", path, resp.Status)
	}
	return resp, nil
}

func (c *Client) call(ctx context.Context, method, path string, body, out any) error {
	resp, err := c.Do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("read answer of %s: %w", path, err)
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
	if err := lines.Err(); err != nil {
		return Model{}, fmt.Errorf("read progress: %w", err)
	}
	return Model{}, errors.New("the node broke off; see its log")
}
