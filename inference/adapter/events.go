package adapter

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// maxEvent bounds one event of a stream: a token with its alternatives is a few KiB;
// SGLang repeats all tokens in each event.
const maxEvent = 16 << 20

// errEnough ends a stream from the caller's side.
var errEnough = errors.New("enough")

// readEvents reads server-sent events and calls each with the data of one; field is
// its name, "data" or "error". The "[DONE]" of OpenAI's dialect ends the stream.
func readEvents(r io.Reader, each func(field string, data []byte) error) error {
	return readLines(r, func(line []byte) error {
		name, data, ok := bytes.Cut(line, []byte(":"))
		if !ok || len(name) == 0 {
			return nil // a blank line, a comment
		}
		data = bytes.TrimPrefix(data, []byte(" "))
		switch string(name) {
		case "data", "error":
		default:
			return nil
		}
		if string(data) == "[DONE]" {
			return errEnough
		}
		return each(string(name), data)
	})
}

// readLines calls each with every line that is not blank. errEnough from it ends the
// reading without an error.
func readLines(r io.Reader, each func(line []byte) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 16<<10), maxEvent)
	for s.Scan() {
		line := bytes.TrimSuffix(s.Bytes(), []byte("\r"))
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		switch err := each(line); {
		case errors.Is(err, errEnough):
			return nil
		case err != nil:
			return err
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("read stream: %w", err)
	}
	return nil
}

// streamError returns what an event that is an error document says, or nil.
func streamError(field string, data []byte) error {
	if field == "error" || bytes.HasPrefix(bytes.TrimSpace(data), []byte(`{"error"`)) {
		return fmt.Errorf("the server ended the answer: %s", errorText(data))
	}
	return nil
}
