package token

import (
	"errors"
	"fmt"
	"strings"
	"sync"
)

var (
	// ErrUnsupported is wrapped by New's errors that name something a
	// tokenizer asks for and this package does not do.
	ErrUnsupported = errors.New("tokenizer asks for something unsupported")
	// ErrMalformed is wrapped by New's errors about a damaged source.
	ErrMalformed = errors.New("malformed tokenizer")
	// ErrInvalidText is wrapped by Encode's errors about text that is not UTF-8.
	ErrInvalidText = errors.New("text is not valid UTF-8")
	// ErrPattern is wrapped by Encode's errors about a split pattern that gave up.
	ErrPattern = errors.New("split pattern failed")
)

// Source is what a tokenizer is made from: plain data that the head keeps in
// its store. Either JSON or GGUF is set.
type Source struct {
	JSON   []byte      // tokenizer.json, or nil
	Config []byte      // tokenizer_config.json, may be nil
	GGUF   *Vocabulary // the vocabulary of a GGUF file, or nil
}

// Vocabulary is the tokenizer.ggml.* metadata of a GGUF file. A key that the
// file lacks has llama.cpp's default: for model "llama" AddBOS and
// AddSpacePrefix are true, for "gpt2" AddBOS is true where Pre is "llama-bpe"
// and AddSpacePrefix is false.
type Vocabulary struct {
	Model, Pre         string    // tokenizer.ggml.model and .pre
	Tokens             []string  // text of each id
	Types              []int32   // llama.cpp's token type of each id; may be empty
	Merges             []string  // "left right" in order of rank; model gpt2
	Scores             []float32 // score of each id; model llama
	BOS, EOS, UNK, PAD int32     // ids, -1: none
	AddBOS, AddEOS     bool
	AddSpacePrefix     bool
}

// Tokenizer turns text into token ids and back. It is immutable but for its
// bounded word cache and scratch, and safe for concurrent use.
type Tokenizer struct {
	vocabulary *vocabulary
	added      *addedTokens
	normalizer normalizer
	splits     []splitter
	model      *model
	template   template
	decoders   []decoderSpec
	bos, eos   int32 // -1: none

	scratch sync.Pool // *scratch
}

// New makes a tokenizer. What the source asks for and the package does not do
// is refused by name (ErrUnsupported).
func New(src Source) (*Tokenizer, error) {
	switch {
	case len(src.JSON) > 0 && src.GGUF != nil:
		return nil, fmt.Errorf("%w: both tokenizer.json and a GGUF vocabulary are given", ErrMalformed)
	case len(src.JSON) > 0:
		return newFromJSON(src.JSON, src.Config)
	case src.GGUF != nil:
		return newFromGGUF(src.GGUF)
	}
	return nil, fmt.Errorf("%w: neither tokenizer.json nor a GGUF vocabulary is given", ErrMalformed)
}

// Size is the largest id plus one.
func (t *Tokenizer) Size() int { return len(t.vocabulary.pieces) }

// BOS is the token that begins a sequence, if the model has one.
func (t *Tokenizer) BOS() (int32, bool) { return t.bos, t.bos >= 0 }

// EOS is the token that ends a sequence, if the model has one.
func (t *Tokenizer) EOS() (int32, bool) { return t.eos, t.eos >= 0 }

// ID finds a token by the text that the vocabulary has for it ("Ġthe",
// "<|im_end|>").
func (t *Tokenizer) ID(token string) (int32, bool) { return t.vocabulary.find(token) }

// Special says whether the token is one that Decode leaves out with skipSpecial.
func (t *Tokenizer) Special(id int32) bool {
	return t.vocabulary.has(id) && t.vocabulary.special[id]
}

// Bytes gives the bytes that the token stands for in a text, nil for an id
// that the vocabulary lacks. The caller owns the slice.
func (t *Tokenizer) Bytes(id int32) []byte {
	if !t.vocabulary.has(id) {
		return nil
	}
	piece := t.vocabulary.pieces[id]
	if t.vocabulary.byteLevel {
		return []byte(piece)
	}
	if b, ok := byteToken(piece); ok && !t.vocabulary.isAdded[id] {
		return []byte{b}
	}
	if t.vocabulary.isAdded[id] {
		return []byte(piece)
	}
	return []byte(strings.ReplaceAll(piece, spaceMark, " "))
}

// Token gives the text of one token as logprobs show it: " the", not "Ġthe".
// A token that is a part of a character gives U+FFFD.
func (t *Tokenizer) Token(id int32) string { return lossy(t.Bytes(id)) }
