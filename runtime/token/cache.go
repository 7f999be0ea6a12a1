package token

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"
	"unsafe"
)

// maxCachedWord bounds the bytes of a word in the cache, and cachedWords their
// number: together under 8 MiB.
const (
	maxCachedWord = 24
	cachedWords   = 1 << 15
)

// wordCache remembers the ids of words. Each key has one slot, whose last word
// stays; readers and writers need no lock.
type wordCache struct {
	slots []atomic.Pointer[cachedWord]
}

// wordKey is a word of at most maxCachedWord bytes, padded with zeros.
type wordKey struct {
	parts  [3]uint64
	length int32
}

// cachedWord never changes.
type cachedWord struct {
	wordKey
	count int32
	few   [6]int32
	many  []int32 // all of them where few is too short, else nil
}

func newWordCache() wordCache {
	return wordCache{slots: make([]atomic.Pointer[cachedWord], cachedWords)}
}

func newWordKey(word string) wordKey {
	k := wordKey{length: int32(len(word))}
	b := unsafe.Slice(unsafe.StringData(word), len(word))
	part := 0
	for ; len(b) >= 8; b = b[8:] {
		k.parts[part] = binary.LittleEndian.Uint64(b)
		part++
	}
	if len(b) >= 4 {
		k.parts[part] = uint64(binary.LittleEndian.Uint32(b)) << 32
		b = b[4:]
	}
	for i, c := range b {
		k.parts[part] |= uint64(c) << (8 * i)
	}
	return k
}

// slot finds the place of a key by a multiplicative hash. Words that share a
// slot only drive each other out.
func (c *wordCache) slot(k wordKey) *atomic.Pointer[cachedWord] {
	high, low := bits.Mul64(k.parts[0]^0x9e3779b97f4a7c15^uint64(k.length), k.parts[1]^0xbf58476d1ce4e5b9)
	if k.length > 16 {
		high, low = bits.Mul64(high^low, k.parts[2]^0x94d049bb133111eb)
	}
	return &c.slots[((high^low)*0x9e3779b97f4a7c15>>40)%cachedWords]
}

func newCachedWord(k wordKey, ids []int32) *cachedWord {
	c := &cachedWord{wordKey: k, count: int32(len(ids))}
	if copy(c.few[:], ids) < len(ids) {
		c.many = append([]int32(nil), ids...)
	}
	return c
}
