// wide_prompt: prompt.cuh's attention on Hopper: the copy engine gathers pages of
// keys and values, two warpgroups multiply 64 query rows each (Shah et al. 2024).
//
// Operands, items and result are prompt.cuh's, bit for bit. A stage is two chunks
// of 64 keys: their scores come from one product, then each chunk is weighed,
// multiplied with its values and merged by itself. The tensor cores have one chunk's
// values while the other is weighed, and the next stage's keys while one is merged.
// Grid: KV heads × items, those with the longest contexts first.
// Bound: 4·rows·context·heads·HD operations (half with the causal mask).
// Reference: ref.Attention.
#pragma once
#include "decode.cuh"
#include "warpgroup.cuh"
#include <type_traits>

struct alignas(128) WidePromptArguments {
  AttentionArguments a;
  CUtensorMap keys, values; // size, slots: pages of 16 slots × 64 dimensions under the 128-byte swizzle
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
typedef std::true_type masks; // whether some row may not see some key of a chunk
typedef std::false_type sees;

template <class T, int HD, bool CAPPED> DEVICE void widePrompt(const WidePromptArguments& w) {
  using C = Chunk<T, HD, true>;
  constexpr int PARTS = HD / 64, KEYS = 2 * chunkKeys, STAGES = 3, ROWS = 128;
  constexpr int partBytes = KEYS * 128, tileBytes = PARTS * partBytes, queryBytes = PARTS * 8192; // of a warpgroup
  extern __shared__ __align__(128) char memory[];
  __shared__ __align__(8) uint64_t barriers[4 * STAGES];
  const AttentionArguments& a = w.a;
  char* aligned = memory + (1024 - shared(memory) % 1024) % 1024;
  const uint32_t queries = shared(aligned), keysAt = queries + 2 * queryBytes, valuesAt = keysAt + STAGES * tileBytes;
  const uint32_t fullKeys = shared(barriers), fullValues = fullKeys + 8 * STAGES, emptyKeys = fullValues + 8 * STAGES, emptyValues = emptyKeys + 8 * STAGES;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) initBarrier(fullKeys + 8 * s, 2), initBarrier(fullValues + 8 * s, 2), initBarrier(emptyKeys + 8 * s, 2), initBarrier(emptyValues + 8 * s, 2);
    fenceBarriers();
  }
  __syncthreads();
  chain();
  const PromptItem item = ((const PromptItem*)a.items)[blockIdx.y];
  const int kv = blockIdx.x, f0 = item.first, row0 = item.row, count = item.count, start = item.start, written = start + count, G = a.group;
  const int lastToken = min(count - 1, (f0 + ROWS - 1) / G), low = start + f0 / G;
  const int firstKey = a.window > 0 ? max(0, low - a.window + 1) : 0;
  const int pair0 = firstKey / KEYS, pairEnd = (start + lastToken) / KEYS + 1;

  if (threadIdx.x >= 256) {
    lowerRegisters<24>();
    // Two warps ask for keys, two for values: each for half of a stage's pages.
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, page = warp % 2 * 4 + lane / PARTS, part = lane % PARTS;
    const bool value = warp >= 2, mine = lane < 4 * PARTS;
    const uint32_t full = value ? fullValues : fullKeys, empty = value ? emptyValues : emptyKeys, tiles = (value ? valuesAt : keysAt) + part * partBytes + page * blockTokens * 128;
    const CUtensorMap* map = value ? &w.values : &w.keys;
    const int* table = a.tables + item.span * a.stride;
    RingSlot ring;
    auto blockOf = [&](int pair) {
      const int at = pair * (KEYS / blockTokens) + page;
      return mine && pair < pairEnd && at * blockTokens < written ? table[at] : -1;
    };
    int block = blockOf(pair0);
    for (int pair = pair0; pair < pairEnd; pair++) {
      const int row = block >= 0 ? (block * a.kvHeads + kv) * blockTokens : -blockTokens; // outside: zeros
      block = blockOf(pair + 1);
      waitBarrier(empty + 8 * ring.slot, ring.phase ^ 1);
      if (lane == 0) expectBytes(full + 8 * ring.slot, tileBytes / 2);
      __syncwarp();
      if (mine) copyTile(tiles + ring.slot * tileBytes, map, part * 64, row, full + 8 * ring.slot);
      ring.next<STAGES>();
    }
    return;
  }
  raiseRegisters<240>();
  const int group = __shfl_sync(allLanes, int(threadIdx.x / 128), 0); // one for all lanes: places of factors are uniform
  const int thread = threadIdx.x % 128, lane = thread % 32, r = lane / 4, q = lane % 4;
  const int g0 = f0 + group * 64, w0 = g0 + thread / 32 * 16; // first query row of the warpgroup, of the warp
  constexpr int PIECES = HD / 8, PER = 64 * PIECES / 128;
  uint4 pieces[PER]; // all asked for at once, not one latency after the other
#pragma unroll
  for (int n = 0; n < PER; n++) {
    const int f = g0 + (n * 128 + thread) / PIECES, head = f < count * G ? a.groups[kv * G + f % G] : -1;
    pieces[n] = head >= 0 ? *(const uint4*)((const T*)a.q + (size_t(row0 + f / G) * a.heads + head) * HD + thread % PIECES * 8) : make_uint4(0, 0, 0, 0);
  }
#pragma unroll
  for (int n = 0; n < PER; n++) {
    const int m = (n * 128 + thread) / PIECES, piece = thread % PIECES;
    *(uint4*)(aligned + group * queryBytes + piece / 8 * 8192 + m * 128 + ((piece % 8 ^ (m & 7)) << 4)) = pieces[n];
  }
  fenceEngine();
  syncSome(1 + group, 128);

  // Keys from seenFrom up to seenTo are seen by every row of this warpgroup.
  const int full = count * G, seenTo = min(start + g0 / G, written - 1), seenFrom = a.window > 0 ? start + (g0 + 63) / G - a.window + 1 : 0;
  float scores[64], o[HD / 2], out[HD / 2], high[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < HD / 2; i++) out[i] = 0;

  // A factor further on in its tile, from the low word of the tile's.
  auto base = [](uint32_t at, int near) { return uint32_t(factor(at, swizzledTiles, near, 1024)); };
  auto place = [](uint32_t low, int bytes) { return factor(0, swizzledTiles, 0, 1024) | (low + (bytes >> 4)); };
  auto multiplyKeys = [&](int slot) {
    const uint32_t a0 = base(queries + group * queryBytes, 16), b0 = base(keysAt + slot * tileBytes, 16);
    hold(scores);
    beginProducts();
#pragma unroll
    for (int k = 0; k < HD / 16; k++) Warpgroup<T, KEYS>::multiply(scores, place(a0, k / 4 * 8192 + k % 4 * 32), place(b0, k / 4 * partBytes + k % 4 * 32), k > 0);
    commitProducts();
  };
  auto multiplyValues = [&](uint4 (&p)[4], int slot, int chunk) {
    const uint32_t b0 = base(valuesAt + slot * tileBytes + chunk * 4 * blockTokens * 128, partBytes);
    hold(o);
    hold(p);
    beginProducts();
#pragma unroll
    for (int page = 0; page < 4; page++) WarpgroupOver<T, HD>::multiply(o, p[page], place(b0, page * blockTokens * 128), page > 0);
    commitProducts();
  };
  struct Weighed { float high[2], sum[2]; }; // of a chunk, rows r and r + 8
  const float exponent = CAPPED ? 1.f : C::exponent(a.scale);
  // Highest scores of both chunks of a stage.
  auto highest = [&](auto masked, int key0, Weighed (&c)[2]) {
    if (CAPPED) {
#pragma unroll
      for (int i = 0; i < 64; i++) scores[i] = capped(scores[i], a.scale, a.softcap);
    }
    if (masked) {
#pragma unroll
      for (int i = 0; i < 64; i++) {
        const int key = key0 + i / 4 * 8 + 2 * q + i % 2, position = start + (w0 + r + i % 4 / 2 * 8) / G;
        if (key > position || (a.window > 0 && key <= position - a.window)) scores[i] = -INFINITY;
      }
    }
    float m[2][2][2]; // chunk, row, even and odd keys
#pragma unroll
    for (int i = 0; i < 64; i++) {
      float& to = m[i / 32][i % 4 / 2][i % 2];
      to = i % 32 < 4 ? scores[i] : fmaxf(to, scores[i]);
    }
    float u[2][2];
#pragma unroll
    for (int i = 0; i < 4; i++) u[i / 2][i % 2] = fmaxf(m[i / 2][i % 2][0], m[i / 2][i % 2][1]);
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {
      float v[4];
#pragma unroll
      for (int i = 0; i < 4; i++) v[i] = __shfl_xor_sync(allLanes, u[i / 2][i % 2], distance);
#pragma unroll
      for (int i = 0; i < 4; i++) u[i / 2][i % 2] = fmaxf(u[i / 2][i % 2], v[i]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) c[i / 2].high[i % 2] = __fmul_rn(u[i / 2][i % 2], exponent);
  };
  // Chunk::weighScores of a chunk whose highest scores are known: both rows at once.
  auto weigh = [&](Weighed& c, uint4 (&p)[4], int half) {
    float from[2], l[2] = {0, 0};
#pragma unroll
    for (int h = 0; h < 2; h++) from[h] = c.high[h] == -INFINITY ? 0.f : -c.high[h]; // all masked: weights of 0, not of NaN
#pragma unroll
    for (int page = 0; page < 4; page++) {
      float e[8];
#pragma unroll
      for (int i = 0; i < 8; i++) e[i] = power(__fmaf_rn(scores[half * 32 + page * 8 + i], exponent, from[i % 4 / 2]));
#pragma unroll
      for (int i = 0; i < 8; i += 2) l[i % 4 / 2] += e[i] + e[i + 1];
      p[page] = make_uint4(::pair<T>(e[0], e[1]), ::pair<T>(e[2], e[3]), ::pair<T>(e[4], e[5]), ::pair<T>(e[6], e[7]));
    }
#pragma unroll
    for (int h = 0; h < 2; h++) l[h] += __shfl_xor_sync(allLanes, l[h], 1);
#pragma unroll
    for (int h = 0; h < 2; h++) c.sum[h] = l[h] + __shfl_xor_sync(allLanes, l[h], 2);
  };
  auto merge = [&](const Weighed& c) {
    float keep[2], take[2];
#pragma unroll
    for (int h = 0; h < 2; h++) mergeFactors(high[h], sum[h], c.high[h], c.sum[h], keep[h], take[h]);
    // Late in a context the highest score seldom moves; a product with 1 changes no bit.
    if (__all_sync(allLanes, keep[0] == 1.f && keep[1] == 1.f)) {
#pragma unroll
      for (int i = 0; i < HD / 2; i++) out[i] = __fmaf_rn(o[i], take[i % 4 / 2], out[i]);
    } else {
#pragma unroll
      for (int i = 0; i < HD / 2; i++) out[i] = merged(out[i], o[i], keep[i % 4 / 2], take[i % 4 / 2]);
    }
  };

  RingSlot ring;
  Weighed c[2];
  uint4 firstWeights[4], lastWeights[4];
  waitBarrier(fullKeys, 0);
  multiplyKeys(0);
  waitProducts<0>();
  hold(scores);
  if (thread == 0) arrive(emptyKeys);
  int key0 = pair0 * KEYS;
  highest(masks(), key0, c);
  weigh(c[0], firstWeights, 0);
  waitBarrier(fullValues, 0);
  auto walk = [&](auto masked, int end) {
#pragma unroll 1
    for (; key0 < end; key0 += KEYS) {
      const int slot = ring.slot;
      multiplyValues(firstWeights, slot, 0);
      weigh(c[1], lastWeights, 1);
      ring.next<STAGES>();
      waitBarrier(fullKeys + 8 * ring.slot, ring.phase);
      multiplyKeys(ring.slot);
      waitProducts<1>();
      hold(o);
      merge(c[0]);
      multiplyValues(lastWeights, slot, 1);
      waitProducts<1>();
      hold(scores);
      if (thread == 0) arrive(emptyKeys + 8 * ring.slot);
      Weighed next[2];
      highest(masked, key0 + KEYS, next);
      weigh(next[0], firstWeights, 0);
      waitBarrier(fullValues + 8 * ring.slot, ring.phase); // and no weight is left for after the wait
      waitProducts<0>();
      hold(o);
      if (thread == 0) arrive(emptyValues + 8 * slot);
      merge(c[1]);
      c[0] = next[0], c[1] = next[1];
    }
  };
  // A turn masks the scores of the next stage. In between, all rows see all keys.
  const int end = (pairEnd - 1) * KEYS, ends[3] = {min(end, seenFrom - KEYS), min(end, seenTo - (2 * KEYS - 2)), end};
#pragma unroll 1
  for (int part = 0; part < 3; part++) {
    if (part == 1) walk(sees(), ends[1]);
    else walk(masks(), part ? ends[2] : ends[0]);
  }
  if (const int used = written - key0; used < KEYS && used % blockTokens) { // slots of the last page that nobody wrote hold anything
    const int left = blockTokens - used % blockTokens;
    for (int i = thread; i < left * PARTS * 8; i += 128)
      *(uint4*)(aligned + (valuesAt - queries) + ring.slot * tileBytes + i / (left * 8) * partBytes + (used + i / 8 % left) * 128 + i % 8 * 16) = make_uint4(0, 0, 0, 0);
    fenceEngine();
    syncSome(1 + group, 128);
  }
  multiplyValues(firstWeights, ring.slot, 0);
  weigh(c[1], lastWeights, 1);
  waitProducts<0>();
  hold(o);
  merge(c[0]);
  multiplyValues(lastWeights, ring.slot, 1);
  waitProducts<0>();
  hold(o);
  merge(c[1]);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int f = w0 + r + 8 * h, head = f < full ? a.groups[kv * G + f % G] : -1;
    if (head < 0) continue;
    T* to = (T*)a.out + (size_t(row0 + f / G) * a.heads + head) * HD + 2 * q;
#pragma unroll
    for (int j = 0; j < HD / 8; j++) *(uint32_t*)(to + 8 * j) = ::pair<T>(out[4 * j + 2 * h] / sum[h], out[4 * j + 2 * h + 1] / sum[h]);
  }
}

#define WIDE_PROMPT(type, size)                                                                                                                        \
  KERNEL __launch_bounds__(384, 1) wide_prompt_##type##_##size(const __grid_constant__ WidePromptArguments w) { widePrompt<type, size, false>(w); } \
  KERNEL __launch_bounds__(384, 1) wide_prompt_capped_##type##_##size(const __grid_constant__ WidePromptArguments w) { widePrompt<type, size, true>(w); }
WIDE_PROMPT(bf16, 64) WIDE_PROMPT(bf16, 128) WIDE_PROMPT(f16, 64) WIDE_PROMPT(f16, 128)
#endif
