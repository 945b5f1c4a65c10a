// Package plainly says what went wrong outside this program in words for people.
package plainly

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
)

// reason is an error that reads otherwise.
type reason struct {
	text string
	error
}

func (r *reason) Error() string { return r.text }
func (r *reason) Unwrap() error { return r.error }

// Said returns err with a text of one line: what is the matter with the other side,
// without the calls of this program that met it.
func Said(err error) error {
	if err == nil {
		return nil
	}
	return &reason{text(err), err}
}

// is reports whether err is of a cause. Not all libraries wrap it, but all print it.
func is(err error, cause syscall.Errno) bool {
	return errors.Is(err, cause) || strings.Contains(err.Error(), ": "+cause.Error())
}

func text(err error) string {
	var dns *net.DNSError
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, context.Canceled):
		return "it was called off"
	// Before the rest, as a name server may refuse or be late as well as the other side.
	case errors.As(err, &dns) && dns.IsNotFound:
		return "the name " + dns.Name + " is not known"
	case dns != nil:
		return "no name server answers for " + dns.Name
	case is(err, syscall.ECONNREFUSED):
		return "nobody listens there"
	case is(err, syscall.EADDRINUSE):
		return "another program has that address"
	case is(err, syscall.EHOSTUNREACH), is(err, syscall.ENETUNREACH):
		return "there is no way there"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), is(err, syscall.ECONNRESET), is(err, syscall.EPIPE):
		return "the connection broke off"
	}
	var file *fs.PathError
	switch {
	case !errors.As(err, &file):
	case errors.Is(err, fs.ErrNotExist):
		return "there is no " + file.Path
	case errors.Is(err, fs.ErrPermission):
		return file.Path + " is not for this user"
	}
	var call *url.Error
	if errors.As(err, &call) {
		err = call.Err
	}
	first, _, _ := strings.Cut(err.Error(), "\n")
	return strings.TrimSuffix(first, ":")
}
