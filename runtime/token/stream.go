package token

import (
	"strings"
	"unicode/utf8"
)

// Decoder gives the text of ids as they come. What Push has given is never
// taken back and never ends inside a character; all of Push and then Flush,
// together, are what Decode gives for the whole.
//
// So text is held back while a later token may change it: the bytes of a
// character that is not complete, and in SentencePiece vocabularies a run of
// byte tokens up to the next other token, because a run that is not UTF-8 as a
// whole becomes U+FFFD throughout.
//
// A Decoder belongs to one sequence and is not safe for concurrent use.
type Decoder struct {
	tokenizer   *Tokenizer
	skipSpecial bool
	stage       textStage
	out         *strings.Builder
}

// NewDecoder makes a decoder of what comes after prompt: the text of the prompt
// itself is not given again, but decides how what follows is spaced.
func (t *Tokenizer) NewDecoder(skipSpecial bool, prompt []int32) *Decoder {
	out := &strings.Builder{}
	d := &Decoder{tokenizer: t, skipSpecial: skipSpecial, out: out, stage: newStages(t.decoders, out)}
	for _, id := range prompt {
		d.push(id)
		if out.Len() > 1<<10 {
			out.Reset()
		}
	}
	out.Reset()
	return d
}

// Push gives the text that is certain once id has come.
func (d *Decoder) Push(id int32) string {
	d.out.Reset()
	d.push(id)
	return d.out.String()
}

// Flush gives what was held back, when no more tokens come.
func (d *Decoder) Flush() string {
	d.out.Reset()
	d.stage.end()
	return d.out.String()
}

func (d *Decoder) push(id int32) {
	v := d.tokenizer.vocabulary
	if !v.has(id) || d.skipSpecial && v.special[id] {
		return
	}
	if b, ok := d.stage.(*byteLevelStage); ok && v.byteLevel {
		b.putBytes(v.pieces[id])
		return
	}
	d.stage.put(v.text(id))
}

// textStage is one decoder of a chain: it gets the texts of tokens, and gives
// texts to the next one. Behind a Fuse a text may be any part of the whole.
type textStage interface {
	put(text string)
	end()
}

func newStages(specs []decoderSpec, out *strings.Builder) textStage {
	var next textStage = sink{out}
	for i := len(specs) - 1; i >= 0; i-- {
		switch spec := specs[i]; spec.Type {
		case "join":
			next = &joinStage{next: next}
		case "ByteLevel":
			next = &byteLevelStage{next: next}
		case "ByteFallback":
			next = &byteFallbackStage{next: next}
		case "Replace":
			next = replaceStage{next, spec.literal, spec.Content}
		case "Metaspace":
			next = &metaspaceStage{next: next, mark: spec.Replacement, never: spec.PrependScheme == "never"}
		case "Strip":
			if spec.fused {
				next = &stripEndsStage{next: next, content: spec.Content, start: spec.Start, stop: spec.Stop}
			} else {
				next = stripStage{next, spec.Content, spec.Start, spec.Stop}
			}
		}
	}
	return next
}

// sink ends a chain.
type sink struct{ out *strings.Builder }

func (s sink) put(text string) { s.out.WriteString(text) }
func (s sink) end()            {}

// joinStage puts a space between tokens: what the reference does without a decoder.
type joinStage struct {
	next textStage
	some bool
}

func (j *joinStage) put(text string) {
	if j.some {
		j.next.put(" ")
	}
	j.some = true
	j.next.put(text)
}

func (j *joinStage) end() { j.next.end() }

// byteLevelStage turns byte-level text into bytes, and bytes into characters.
type byteLevelStage struct {
	next textStage
	held []byte // the beginning of a character, at most three bytes
	text strings.Builder
}

func (b *byteLevelStage) put(text string) {
	piece, ok := appendUnmapped(nil, []byte(text))
	if !ok {
		piece = []byte(text)
	}
	b.putBytes(string(piece))
}

func (b *byteLevelStage) putBytes(piece string) {
	if len(b.held) == 0 && utf8.ValidString(piece) {
		b.next.put(piece)
		return
	}
	b.text.Reset()
	b.held = append([]byte(nil), writeLossy(&b.text, append(b.held, piece...), false)...)
	b.next.put(b.text.String())
}

func (b *byteLevelStage) end() {
	if len(b.held) > 0 {
		b.next.put(lossy(b.held))
		b.held = nil
	}
	b.next.end()
}

// byteFallbackStage turns runs of byte tokens into characters; a run that is
// not UTF-8 gives U+FFFD for each of its bytes.
type byteFallbackStage struct {
	next textStage
	run  []byte
}

func (b *byteFallbackStage) put(text string) {
	if c, ok := byteToken(text); ok {
		b.run = append(b.run, c)
		return
	}
	b.flush()
	b.next.put(text)
}

func (b *byteFallbackStage) flush() {
	if len(b.run) == 0 {
		return
	}
	if utf8.Valid(b.run) {
		b.next.put(string(b.run))
	} else {
		for range b.run {
			b.next.put("\ufffd")
		}
	}
	b.run = b.run[:0]
}

func (b *byteFallbackStage) end() {
	b.flush()
	b.next.end()
}

// replaceStage replaces a literal inside each token.
type replaceStage struct {
	next             textStage
	literal, content string
}

func (r replaceStage) put(text string) {
	r.next.put(strings.ReplaceAll(text, r.literal, r.content))
}

func (r replaceStage) end() { r.next.end() }

// metaspaceStage writes a space for each mark, and drops those of the first
// token unless no mark is ever put before a text.
type metaspaceStage struct {
	next        textStage
	mark        string
	never, some bool
}

func (m *metaspaceStage) put(text string) {
	space := " "
	if !m.some && !m.never {
		space = ""
	}
	m.some = true
	m.next.put(strings.ReplaceAll(text, m.mark, space))
}

func (m *metaspaceStage) end() { m.next.end() }

// stripStage takes characters off both ends of each token.
type stripStage struct {
	next        textStage
	content     string
	start, stop int
}

func (s stripStage) put(text string) {
	for i := 0; i < s.start && strings.HasPrefix(text, s.content); i++ {
		text = text[len(s.content):]
	}
	for i := 0; i < s.stop && strings.HasSuffix(text, s.content); i++ {
		text = text[:len(text)-len(s.content)]
	}
	s.next.put(text)
}

func (s stripStage) end() { s.next.end() }

// stripEndsStage takes characters off both ends of the whole. It holds back as
// many at the end of what has come as it may have to take off.
type stripEndsStage struct {
	next        textStage
	content     string
	start, stop int // start counts down to 0
	held        int // characters of content held back
}

func (s *stripEndsStage) put(text string) {
	for s.start > 0 && text != "" {
		if !strings.HasPrefix(text, s.content) {
			s.start = 0
			break
		}
		text = text[len(s.content):]
		s.start--
	}
	if text == "" {
		return
	}
	if s.stop == 0 {
		s.next.put(text)
		return
	}
	body := strings.TrimRight(text, s.content)
	tail := (len(text) - len(body)) / len(s.content)
	if body != "" {
		s.next.put(strings.Repeat(s.content, s.held) + body)
		s.held = 0
	}
	s.held += tail
	if over := s.held - s.stop; over > 0 {
		s.next.put(strings.Repeat(s.content, over))
		s.held = s.stop
	}
}

func (s *stripEndsStage) end() {
	s.held = 0
	s.next.end()
}
