package adapter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// words knows the text of tokens. Servers give text for ids, not bytes, and their
// tokenizers trim a text's beginning, so a token is decoded behind an anchor and the
// anchor's text taken off. What a token stands for never changes: it is asked once.
//
// A token whose text has U+FFFD is a fragment of a character, and is decoded with
// those around it.
type words struct {
	ctx     context.Context // of the engine
	decode  func(context.Context, []int32) (string, error)
	special map[string]bool
	anchor  []int32
	prefix  string // text of the anchor

	mu     sync.Mutex
	pieces map[int32]string  // guarded by mu
	runs   map[string]string // text of fragments together; guarded by mu
	eos    map[int32]bool    // tokens that ended an answer; guarded by mu
}

const (
	maxPieces = 1 << 20 // more ids than a vocabulary has
	maxRuns   = 1 << 16
	maxRun    = 16 // fragments that are decoded together; four make a character
)

func newWords(ctx, life context.Context, d driver, special []string) (*words, error) {
	w := &words{
		ctx: life, decode: d.decode, special: make(map[string]bool),
		pieces: make(map[int32]string), runs: make(map[string]string), eos: make(map[int32]bool),
	}
	for _, s := range special {
		w.special[s] = true
	}
	ids, err := d.tokenize(ctx, "a", false)
	if err != nil {
		return nil, fmt.Errorf("tokenize: %w", err)
	}
	if len(ids) == 0 {
		return nil, errors.New("tokenize: the letter a has no token")
	}
	w.anchor = ids
	if w.prefix, err = d.decode(ctx, ids); err != nil {
		return nil, fmt.Errorf("detokenize: %w", err)
	}
	// A token must mean the same wherever it stands.
	twice, err := d.decode(ctx, append(append([]int32(nil), ids...), ids...))
	if err != nil {
		return nil, fmt.Errorf("detokenize: %w", err)
	}
	if !strings.HasPrefix(twice, w.prefix) || !strings.HasSuffix(twice, "a") {
		return nil, fmt.Errorf("detokenize: the tokens of %q twice are %q", w.prefix, twice)
	}
	return w, nil
}

// ask decodes ids behind the anchor. A server that is busy for a moment is asked
// again.
func (w *words) ask(ids []int32) (string, error) {
	seq := append(append([]int32(nil), w.anchor...), ids...)
	var err error
	for try := range 3 {
		ctx, cancel := context.WithTimeout(w.ctx, askTimeout)
		var s string
		s, err = w.decode(ctx, seq)
		cancel()
		if err == nil {
			text, ok := strings.CutPrefix(s, w.prefix)
			if !ok {
				return "", fmt.Errorf("detokenize: %q does not begin with %q", s, w.prefix)
			}
			return text, nil
		}
		if w.ctx.Err() != nil {
			break
		}
		time.Sleep(time.Duration(try) * 50 * time.Millisecond)
	}
	return "", fmt.Errorf("detokenize: %w", err)
}

// piece returns the text of one token, empty for control tokens.
func (w *words) piece(id int32) (string, error) {
	w.mu.Lock()
	s, ok := w.pieces[id]
	w.mu.Unlock()
	if ok {
		return s, nil
	}
	s, err := w.ask([]int32{id})
	if err != nil {
		return "", err
	}
	if w.special[s] || control.MatchString(s) {
		s = ""
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.pieces) >= maxPieces {
		clear(w.pieces)
	}
	w.pieces[id] = s
	return s, nil
}

// run returns the text of fragments together.
func (w *words) run(ids []int32) (string, error) {
	key := make([]byte, 0, 4*maxRun)
	for _, id := range ids {
		key = binary.LittleEndian.AppendUint32(key, uint32(id))
	}
	w.mu.Lock()
	s, ok := w.runs[string(key)]
	w.mu.Unlock()
	if ok {
		return s, nil
	}
	s, err := w.ask(ids)
	if err != nil {
		return "", err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.runs) >= maxRuns {
		clear(w.runs)
	}
	w.runs[string(key)] = s
	return s, nil
}

// end notes a token with which an answer ended: it has no text.
func (w *words) end(id int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.eos[id], w.pieces[id] = true, ""
}

// ends reports whether an answer ended with this token before.
func (w *words) ends(id int32) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.eos[id]
}

// control are the forms of control tokens: <|im_end|>, </s>, <end_of_turn>, [PAD].
// They are not shown.
var control = regexp.MustCompile(`^(?:<[|｜].*[|｜]>|</?s>|<(?:bos|eos|pad|unk|mask|cls|sep|start_of_turn|end_of_turn)>|\[(?:BOS|EOS|PAD|UNK|MASK|CLS|SEP)\])$`)

// detokenizer implements inference.Detokenizer.
type detokenizer struct {
	words   *words
	pending []int32 // fragments of a character that is not complete
}

// add returns the text that the token completes.
func (d *detokenizer) add(id int32) (string, error) {
	piece, err := d.words.piece(id)
	if err != nil {
		return "", err
	}
	fragment := strings.ContainsRune(piece, utf8.RuneError)
	if len(d.pending) == 0 && !fragment {
		return piece, nil
	}
	if !fragment && piece == "" {
		return "", nil // a control token between fragments has no text of its own
	}
	d.pending = append(d.pending, id)
	text, err := d.words.run(d.pending)
	if err != nil {
		d.pending = d.pending[:len(d.pending)-1]
		return "", err
	}
	if strings.HasSuffix(text, "\uFFFD") && len(d.pending) < maxRun {
		return "", nil
	}
	d.pending = d.pending[:0]
	return text, nil
}

// Add returns the text that the token completes. Generate has asked the server for
// it before, so it is at hand; where it is not and the server fails, the text is
// empty, and Generate fails on the same token.
func (d *detokenizer) Add(token int32) string {
	s, _ := d.add(token)
	return s
}

// Flush returns the text of fragments that were never completed.
func (d *detokenizer) Flush() string {
	if len(d.pending) == 0 {
		return ""
	}
	s, err := d.words.run(d.pending)
	d.pending = d.pending[:0]
	if err != nil {
		return "\uFFFD"
	}
	return s
}
