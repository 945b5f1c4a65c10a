package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// Guard decides who may call the API.
type Guard struct {
	// Key, if set, is required of every caller, as a bearer token or in X-Api-Key.
	Key string
	// Token is the secret in the home folder that control calls need.
	Token string
	// Loopback says that the API listens on a loopback address. Only names of the
	// loopback are then accepted in Host, so that a page that makes its own name
	// point here (DNS rebinding) is refused.
	Loopback bool
}

// Wrap puts the guard in front of next.
func (g Guard) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case g.Loopback && !loopbackName(r.Host):
			refuse(w, http.StatusForbidden, "host_not_allowed", "this API answers only under a loopback name, not "+short(r.Host))
		case !sameOrigin(r):
			refuse(w, http.StatusForbidden, "origin_not_allowed", "web pages of other origins may not call this API")
		case g.Key != "" && !g.hasKey(r) && !g.hasToken(r):
			w.Header().Set("WWW-Authenticate", "Bearer")
			refuse(w, http.StatusUnauthorized, "invalid_api_key", "this API needs its key: Authorization: Bearer KEY")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// codeToken is the code of a refusal for want of the token.
const codeToken = "token_needed"

// Control lets only callers with the token of the home folder through.
func (g Guard) Control(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !g.hasToken(r) {
			refuse(w, http.StatusUnauthorized, codeToken, "control and wallet calls need the token in the file api.token of the node's home folder, in the header Mesh-Token")
			return
		}
		next(w, r)
	}
}

func (g Guard) hasKey(r *http.Request) bool {
	return equal(bearer(r), g.Key) || equal(r.Header.Get("X-Api-Key"), g.Key)
}

func (g Guard) hasToken(r *http.Request) bool {
	return g.Token != "" && equal(r.Header.Get("Mesh-Token"), g.Token)
}

// equal compares secrets in a time that does not depend on them.
func equal(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

func bearer(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// sameOrigin refuses what browsers send on behalf of pages from elsewhere.
func sameOrigin(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
	default:
		return false
	}
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && strings.EqualFold(u.Host, r.Host)
}

// loopbackName reports whether a Host header names this machine to itself; browsers
// resolve names below localhost so.
func loopbackName(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return Loopback(host) || strings.HasSuffix(strings.ToLower(host), ".localhost")
}

// Loopback reports whether a name or address is of the loopback wherever it is resolved.
func Loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && ip.IsLoopback()
}

func short(s string) string {
	if len(s) > 60 {
		return s[:60] + "…"
	}
	return s
}

// errorDocument has the shape that OpenAI clients read, so that one shape serves
// every route.
type errorDocument struct {
	Error struct {
		Message string `json:"message"`
		Type    string `json:"type"`
		Code    string `json:"code"`
	} `json:"error"`
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	var doc errorDocument
	doc.Error.Message, doc.Error.Code, doc.Error.Type = message, code, "mesh_error"
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		doc.Error.Type = "authentication_error"
	case http.StatusBadRequest, http.StatusNotFound:
		doc.Error.Type = "invalid_request_error"
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(doc)
}
