//go:build cuda

package cuda

import "unsafe"

// The structs that kernels take, as src/ declares them: same order, same sizes.

type pointer = uint64 // device memory

type linearArguments struct {
	weight, x, gain, bias, scale, out, partial, arrived pointer
	experts, pairs, starts                              pointer
	rows, width, columns                                int32
	chunks, segment, segments                           int32
	xStride, outStride                                  int32
	eps, softcap                                        float32
	activation, gated, accumulate                       int32
	xNarrow, outNarrow                                  int32
	slots, parts                                        int32
}

type lineArguments struct {
	weight, x, gain, out      pointer
	columns, width            int32
	chunks, segment, segments int32
	units, each, more         int32
	inverse                   int32
	stepCouples, stepSegments int32
	slots, rings, once        int32
	stagedAt, sumsAt          int32
	eps                       float32
}

// wideArguments, jointArguments and widePromptArguments: tensor maps stand at multiples of 128 bytes.
type wideArguments struct {
	linearArguments
	whole, tiles, weightTiles, rowTiles int32
	once, engine                        int32
	headArguments
	_              [127 - (unsafe.Sizeof(linearArguments{})+24+unsafe.Sizeof(headArguments{})+127)%128]byte
	weight, x, out tensorMap
}

// headArguments begins with a pointer: what stands before it in wideArguments ends at 8 bytes.
type headArguments struct {
	rope, position, place, q, k, v pointer
	heads, kvHeads, size, padding  int32
}

type jointArguments struct {
	linearArguments
	weightTiles, _      int32
	next, gain, squares pointer
	_                   [127 - (unsafe.Sizeof(linearArguments{})+8+24+127)%128]byte
	x                   tensorMap
}

type widePromptArguments struct {
	attentionArguments
	works        int32 // items × KV heads
	_            [127 - (unsafe.Sizeof(attentionArguments{})+4+127)%128]byte
	keys, values tensorMap
}

type normArguments struct {
	x, gain, bias, out, scale         pointer
	rows, columns, xStride, outStride int32
	kind, xNarrow, postponed, early   int32
	eps                               float32
}

type embedArguments struct {
	table, positions, tokens, position, last               pointer
	out                                                    pointer
	columns, chunks, positionChunks, outStride, vocabulary int32
	scale                                                  float32
}

type gatherArguments struct {
	x, out, wanted pointer
	words, odd     int32
}

type deliverArguments struct {
	from, to, drawn, posted pointer
	words                   int32
}

type convertArguments struct {
	x, out, count pointer
}

type seatArguments struct {
	counts, last, tokens              pointer
	prompt, output, vocabulary, token int32
}

type packArguments struct {
	source, out                 pointer
	stride                      int64
	rows, row0, columns, chunks int32
	kind, half                  int32
}

type fillArguments struct {
	out, count pointer
	seed       uint32
	scale      float32
}

type readArguments struct {
	in, count, out pointer
}

type gateArguments struct {
	y, out                                             pointer
	half, outStride, activation, accumulate, outNarrow int32
	softcap                                            float32
}

type attentionArguments struct {
	qkv, q, out, k, v                        pointer
	position, rowSpan, tables, items         pointer
	groups, qGain, qBias, kGain, kBias, rope pointer
	partial, arrived                         pointer
	blockStride                              int64
	rows, heads, kvHeads, size, stride       int32
	group                                    int32
	pairs, interleaved, normAcross           int32
	qNorm, kNorm                             int32
	window, chunksMax                        int32
	stored, stages                           int32
	walks, together                          int32
	qEps, kEps, scale, softcap               float32
}

type reduceArguments struct {
	part, box, signals                        [reduceRanks]pointer
	fault, base, x, out, count                pointer
	half, slot                                uint64 // floats
	patience                                  uint64
	columns                                   [reduceRanks]int32
	outStride                                 int32
	rank, ranks, index, early, vectors, moved int32
	_                                         int32
}

type sumRowsArguments struct {
	reduceArguments
	gain, prepared, scale         pointer
	rows, columns, preparedStride int32
	eps                           float32
}

type followArguments struct {
	reduceArguments
	seats, last pointer
}

type reduceFault struct {
	rank, number, seen uint32
}

type expertArguments struct {
	logits, chosen, weight, place, pairs, starts, y, out pointer
	rows, experts, topK, columns                         int32
	renormalise, accumulate                              int32
}

type sampleRow struct {
	row, seat, target                                   int32
	temperature                                         float32
	topK                                                int32
	topP, minLog                                        float32
	presence, frequency, repetition                     float32
	biasAt, biases, bannedAt, banned, maskAt, maskWords int32
	uniform                                             uint32
	top, topAt                                          int32
	flags                                               int32
}

type sampleArguments struct {
	logits, adjusted, rows, lists, counts, last, drawn, top, posted pointer
	vocabulary, stride, seats                                       int32
}

type drawn struct {
	token   int32
	logprob float32
	rank    int32
	_       int32
}

type topToken struct {
	token   int32
	logprob float32
}
