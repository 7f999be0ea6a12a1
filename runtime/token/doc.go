// Package token turns text into token ids and back, exactly as Hugging Face
// tokenizers does for byte-level BPE and for SentencePiece BPE with byte
// fallback. A Tokenizer is made from a tokenizer.json or from the vocabulary
// of a GGUF file; the head owns it and calls it, nodes see token ids alone.
//
// The way of a text, each step in a file of its own:
//
//	added.go      added tokens are cut out of the text
//	normalize.go  what lies between them is normalised (NFC, ▁ for a space)
//	split*.go     and split into words by scanners or regular expressions
//	merge.go      pairs of symbols are merged, lowest rank first
//	template.go   special tokens are put around the whole
//
// and back: decode.go, as a stream in stream.go.
//
// The package never reads a file, never renders a chat template, and never
// guesses: a component of a tokenizer.json that it does not know is refused
// by name when the tokenizer is made, as is text that is not UTF-8.
package token
