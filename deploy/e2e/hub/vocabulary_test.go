//go:build e2e

package hub

import (
	"fmt"
	"strings"

	"manta/runtime/weights/weightstest"
)

// object is a JSON object.
type object = map[string]any

// A vocabulary is a small tokenizer in the form of a family: what its
// tokenizer.json and tokenizer_config.json say.
type vocabulary struct {
	tokenizer object
	config    object
	size      int      // tokens, the added ones included
	pieces    []string // of the model, by id
	merges    []string
}

// merged are pairs to merge, in order of rank; Ġ or ▁ stands for the space.
var merged = []string{"t h", "th e", "_ the", "i n", "e r", "_ q", "u i", "_q ui", "c k", "o u", "in g", "_ b"}

// byteLevel gives a vocabulary of all bytes and a few merges (Radford et al. 2019,
// §2.2), as GPT-2, Llama 3, Qwen and OLMo 2 have it. split is a regular
// expression; "" is GPT-2's own.
func byteLevel(split, bos, eos string, more ...string) vocabulary {
	v := vocabulary{pieces: weightstest.Bytes()}
	v.addMerges("Ġ")
	level := object{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": split == ""}
	var before any = level
	if split != "" {
		before = object{"type": "Sequence", "pretokenizers": []object{
			{"type": "Split", "pattern": object{"Regex": split}, "behavior": "Isolated", "invert": false}, level,
		}}
	}
	v.finish(bos, eos, more, object{
		"pre_tokenizer": before, "decoder": object{"type": "ByteLevel"}, "post_processor": level,
		"model": object{"type": "BPE", "byte_fallback": false, "ignore_merges": false},
	})
	return v
}

// sentencePiece gives a vocabulary of characters and bytes to fall back on (Kudo &
// Richardson 2018), as Llama 2, Mistral, Phi-3 and Gemma have it. prefix puts a
// space before every text.
func sentencePiece(prefix bool, special []string, bos, eos string, more ...string) vocabulary {
	v := vocabulary{pieces: append([]string{}, special...)}
	for b := range 256 {
		v.pieces = append(v.pieces, fmt.Sprintf("<0x%02X>", b))
	}
	v.pieces = append(v.pieces, "▁")
	for c := '!'; c <= '~'; c++ {
		v.pieces = append(v.pieces, string(c))
	}
	v.addMerges("▁")
	normalizers := []object{{"type": "Replace", "pattern": object{"String": " "}, "content": "▁"}}
	decoders := []object{{"type": "Replace", "pattern": object{"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}}
	if prefix {
		normalizers = append([]object{{"type": "Prepend", "prepend": "▁"}}, normalizers...)
		decoders = append(decoders, object{"type": "Strip", "content": " ", "start": 1, "stop": 0})
	}
	v.finish(bos, eos, more, object{
		"normalizer": object{"type": "Sequence", "normalizers": normalizers},
		"decoder":    object{"type": "Sequence", "decoders": decoders},
		"model":      object{"type": "BPE", "byte_fallback": true, "fuse_unk": true, "unk_token": "<unk>"},
	})
	return v
}

func (v *vocabulary) addMerges(space string) {
	for _, m := range merged {
		m = strings.ReplaceAll(m, "_", space)
		v.merges = append(v.merges, m)
		v.pieces = append(v.pieces, strings.ReplaceAll(m, " ", ""))
	}
}

// finish writes what both kinds have. bos, where there is one, begins every text.
func (v *vocabulary) finish(bos, eos string, more []string, parts object) {
	ids := map[string]int{}
	for id, p := range v.pieces {
		ids[p] = id
	}
	var added []object
	decoder := object{}
	for _, name := range append([]string{bos, eos}, more...) {
		if name == "" || decoder[fmt.Sprint(ids[name])] != nil && ids[name] > 0 {
			continue
		}
		id, known := ids[name]
		if !known {
			id = len(v.pieces)
			v.pieces, ids[name] = append(v.pieces, name), id
		}
		token := object{"content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}
		decoder[fmt.Sprint(id)] = token
		withID := object{"id": id}
		for k, x := range token {
			withID[k] = x
		}
		added = append(added, withID)
	}
	model := parts["model"].(object)
	model["vocab"], model["merges"] = ids, v.merges
	v.tokenizer = object{"version": "1.0", "truncation": nil, "padding": nil, "normalizer": nil, "pre_tokenizer": nil, "post_processor": nil}
	for k, x := range parts {
		v.tokenizer[k] = x
	}
	v.tokenizer["added_tokens"] = added
	v.config = object{"added_tokens_decoder": decoder, "eos_token": eos, "clean_up_tokenization_spaces": false, "model_max_length": 512}
	if bos != "" {
		v.config["bos_token"] = bos
		one := object{"SpecialToken": object{"id": bos, "type_id": 0}}
		v.tokenizer["post_processor"] = object{
			"type": "TemplateProcessing", "single": []object{one, {"Sequence": object{"id": "A", "type_id": 0}}},
			"pair":           []object{one, {"Sequence": object{"id": "A", "type_id": 0}}, {"Sequence": object{"id": "B", "type_id": 1}}},
			"special_tokens": object{bos: object{"id": bos, "ids": []int{ids[bos]}, "tokens": []string{bos}}},
		}
	}
	v.size = len(v.pieces)
}

// id gives a token's id.
func (v *vocabulary) id(name string) int {
	for id, p := range v.pieces {
		if p == name {
			return id
		}
	}
	panic("no token " + name)
}
