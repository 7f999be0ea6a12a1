package kv

import (
	"crypto/sha256"
	"encoding/binary"
)

// BlockTokens is the number of tokens of one block.
const BlockTokens = 16

// Hash names the tokens of a block and of everything before it: the first 16
// bytes of SHA-256. Nobody who chooses prompts can make two prefixes collide.
type Hash [16]byte

// Seed begins a chain. It is made from the digest of the model's weights.
func Seed(model [32]byte) Hash { return Hash(model[:16]) }

// Next extends a chain by one full block.
func Next(previous Hash, tokens []int32) Hash {
	var buf [16 + 4*BlockTokens]byte
	copy(buf[:], previous[:])
	for i, t := range tokens[:BlockTokens] {
		binary.LittleEndian.PutUint32(buf[16+4*i:], uint32(t))
	}
	sum := sha256.Sum256(buf[:])
	return Hash(sum[:16])
}

// Extend appends the hashes of the blocks that tokens fill beyond chain.
func Extend(chain []Hash, seed Hash, tokens []int32) []Hash {
	for end := (len(chain) + 1) * BlockTokens; end <= len(tokens); end += BlockTokens {
		previous := seed
		if len(chain) > 0 {
			previous = chain[len(chain)-1]
		}
		chain = append(chain, Next(previous, tokens[end-BlockTokens:end]))
	}
	return chain
}
