// wide_prompt: prompt.cuh's attention on Hopper: the copy engine gathers pages of
// keys and values, two warpgroups multiply 64 query rows each (Shah et al. 2024).
//
// Operands, items and result are prompt.cuh's, bit for bit. A stage is two chunks
// of 64 keys: their scores come from one product, then each chunk is weighed,
// multiplied with its values and merged by itself. The tensor cores have one chunk's
// values while the other is weighed, and the next stage's keys while one is merged.
// Work is an item and a KV head; those with the longest contexts come first. Grid: at
// most one block a multiprocessor, each takes work in turn: while it weighs, merges
// and stores, the next items' keys, values and queries are on their way.
// Bound: 4·rows·context·heads·HD operations (half with the causal mask).
// Reference: ref.Attention.
#pragma once
#include "decode.cuh"
#include "warpgroup.cuh"
#include <type_traits>

struct alignas(128) WidePromptArguments {
  AttentionArguments a;
  int works; // items × KV heads
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
  constexpr int ITEMS = 4; // this turn's and the next one's, in a ring
  __shared__ __align__(8) uint64_t barriers[4 * STAGES];
  __shared__ PromptItem items[2][ITEMS];
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
  const int G = a.group, works = w.works;
  // There and back, so that all blocks have as much.
  auto workOf = [&](int turn) { return turn * int(gridDim.x) + int(turn % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x); };
  struct Span { int low, end, pair0, pairEnd; }; // of keys: the first row's position; what the last row sees, in stages
  auto spanOf = [&](const PromptItem& item) {
    Span s;
    s.low = item.start + item.first / G, s.end = item.start + min(item.count, (item.first + ROWS - 1) / G + 1);
    s.pair0 = (a.window > 0 ? max(0, s.low - a.window + 1) : 0) / KEYS, s.pairEnd = (s.end - 1) / KEYS + 1;
    return s;
  };

  if (threadIdx.x >= 256) {
    lowerRegisters<24>();
    // Two warps ask for keys, two for values: each for half of a stage's pages.
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, page = warp % 2 * 4 + lane / PARTS, part = lane % PARTS;
    const bool value = warp >= 2, mine = lane < 4 * PARTS;
    const uint32_t full = value ? fullValues : fullKeys, empty = value ? emptyValues : emptyKeys, tiles = (value ? valuesAt : keysAt) + part * partBytes + page * blockTokens * 128;
    const CUtensorMap* map = value ? &w.values : &w.keys;
    RingSlot ring;
#pragma unroll 1
    for (int turn = 0, work; (work = workOf(turn)) < works; turn++) {
      const PromptItem item = ((const PromptItem*)a.items)[work / a.kvHeads];
      const Span s = spanOf(item);
      const int* table = a.tables + item.span * a.stride;
      constexpr int none = -2; // past what is seen: not copied
      auto blockOf = [&](int pair) {
        const int at = pair * (KEYS / blockTokens) + page;
        return mine && pair < s.pairEnd && at * blockTokens < s.end ? table[at] : none;
      };
      int block = blockOf(s.pair0);
#pragma unroll 1
      for (int pair = s.pair0; pair < s.pairEnd; pair++) {
        const bool copied = block != none;
        const int row = block >= 0 ? (block * a.kvHeads + work % a.kvHeads) * blockTokens : -blockTokens; // outside: zeros
        block = blockOf(pair + 1);
        waitBarrier(empty + 8 * ring.slot, ring.phase ^ 1);
        const int pages = __popc(__ballot_sync(allLanes, copied));
        if (lane == 0) expectBytes(full + 8 * ring.slot, pages * blockTokens * 128);
        __syncwarp();
        if (copied) copyTile(tiles + ring.slot * tileBytes, map, part * 64, row, full + 8 * ring.slot);
        ring.next<STAGES>();
      }
    }
    return;
  }
  raiseRegisters<240>();
  const int group = __shfl_sync(allLanes, int(threadIdx.x / 128), 0); // one for all lanes: places of factors are uniform
  const int thread = threadIdx.x % 128, lane = thread % 32, r = lane / 4, q = lane % 4;
  // Items and queries of a warpgroup come a turn ahead of their use.
  auto fetchItem = [&](int turn) {
    const int work = workOf(turn);
    if (thread < 2 && work < works) copyAsync(shared(&items[group][turn % ITEMS]) + thread * 16, (const char*)((const PromptItem*)a.items + work / a.kvHeads) + thread * 16, 16);
  };
  auto fetchQueries = [&](int turn) {
    constexpr int PIECES = HD / 8, PER = 64 * PIECES / 128;
    const int work = workOf(turn);
    if (work < works) {
      const PromptItem& item = items[group][turn % ITEMS];
      const int kv = work % a.kvHeads, piece = thread % PIECES;
      const int f0 = item.first + group * 64, all = item.count * G, row0 = item.row;
      int heads[PER]; // all asked for at once, not one latency after the other
#pragma unroll
      for (int n = 0; n < PER; n++) {
        const int f = f0 + (n * 128 + thread) / PIECES;
        heads[n] = f < all ? a.groups[kv * G + f % G] : -1;
      }
#pragma unroll
      for (int n = 0; n < PER; n++) {
        const int m = (n * 128 + thread) / PIECES;
        copyAsync(queries + group * queryBytes + piece / 8 * 8192 + m * 128 + ((piece % 8 ^ (m & 7)) << 4),
                  (const T*)a.q + (size_t(row0 + (f0 + m) / G) * a.heads + max(heads[n], 0)) * HD + piece * 8, heads[n] >= 0 ? 16 : 0);
      }
    }
    fetchItem(turn + 1);
    commitCopies();
  };
  fetchItem(0);
  commitCopies();
  waitCopies<0>();
  syncSome(1 + group, 128);
  fetchQueries(0);

  float scores[64], o[HD / 2], out[HD / 2], high[2], sum[2];

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
  auto highest = [&](auto masked, int first, int key0, Weighed (&c)[2]) { // first: the warp's first query row, counted from its sequence's begin
    if (CAPPED) {
#pragma unroll
      for (int i = 0; i < 64; i++) scores[i] = capped(scores[i], a.scale, a.softcap);
    }
    if (masked) {
#pragma unroll
      for (int i = 0; i < 64; i++) {
        const int key = key0 + i / 4 * 8 + 2 * q + i % 2, position = (first + r + i % 4 / 2 * 8) / G;
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
#pragma unroll 1
  for (int turn = 0, work; (work = workOf(turn)) < works; turn++) {
    waitCopies<0>();
    fenceEngine();
    syncSome(1 + group, 128);
    const PromptItem& item = items[group][turn % ITEMS];
    const Span s = spanOf(item);
    const int g0 = item.start * G + item.first + group * 64, w0 = g0 + thread / 32 * 16; // first query row of the warpgroup, of the warp, counted from the sequence's begin
    // Keys from seenFrom up to seenTo are seen by every row of this warpgroup.
    const int seenTo = min(g0 / G, s.end - 1), seenFrom = a.window > 0 ? (g0 + 63) / G - a.window + 1 : 0;
#pragma unroll
    for (int i = 0; i < HD / 2; i++) out[i] = 0;
    high[0] = high[1] = -INFINITY, sum[0] = sum[1] = 0;
    waitBarrier(fullKeys + 8 * ring.slot, ring.phase);
    multiplyKeys(ring.slot);
    waitProducts<0>();
    hold(scores);
    if (thread == 0) arrive(emptyKeys + 8 * ring.slot);
    int key0 = s.pair0 * KEYS;
    highest(masks(), w0, key0, c);
    weigh(c[0], firstWeights, 0);
    waitBarrier(fullValues + 8 * ring.slot, ring.phase);
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
        highest(masked, w0, key0 + KEYS, next);
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
    const int last = (s.pairEnd - 1) * KEYS, ends[3] = {min(last, seenFrom - KEYS), min(last, seenTo - (2 * KEYS - 2)), last};
#pragma unroll 1
    for (int part = 0; part < 3; part++) {
      if (part == 1) walk(sees(), ends[1]);
      else walk(masks(), part ? ends[2] : ends[0]);
    }
    const int used = s.end - key0; // keys of the last stage; the others' slots hold anything
    if (used < KEYS) {
      const int left = (used > chunkKeys ? KEYS : chunkKeys) - used;
      for (int i = thread; i < left * PARTS * 8; i += 128)
        *(uint4*)(aligned + (valuesAt - queries) + ring.slot * tileBytes + i / (left * 8) * partBytes + (used + i / 8 % left) * 128 + i % 8 * 16) = make_uint4(0, 0, 0, 0);
      fenceEngine();
    }
    syncSome(1 + group, 128); // and nobody needs the queries any more
    fetchQueries(turn + 1);
    multiplyValues(firstWeights, ring.slot, 0);
    if (used > chunkKeys) weigh(c[1], lastWeights, 1);
    waitProducts<0>();
    hold(o);
    merge(c[0]);
    if (used > chunkKeys) {
      multiplyValues(lastWeights, ring.slot, 1);
      waitProducts<0>();
      hold(o);
      merge(c[1]);
    }
    if (thread == 0) arrive(emptyValues + 8 * ring.slot);
    ring.next<STAGES>();
    const int f0 = item.first + group * 64 + thread / 32 * 16 + r;
    int heads[2];
#pragma unroll
    for (int h = 0; h < 2; h++) heads[h] = f0 + 8 * h < item.count * G ? a.groups[work % a.kvHeads * G + (f0 + 8 * h) % G] : -1;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int f = f0 + 8 * h, head = heads[h];
      const float scale = inverse(sum[h]);
      T* to = (T*)a.out + (size_t(item.row + f / G) * a.heads + max(head, 0)) * HD;
#pragma unroll
      for (int j = 0; j < HD / 8; j += 4) { // a lane gathers one eight of dimensions from its four
        uint32_t v[4];
#pragma unroll
        for (int k = 0; k < 4; k++) v[k] = ::pair<T>(out[4 * (j + k) + 2 * h] * scale, out[4 * (j + k) + 2 * h + 1] * scale);
#pragma unroll
        for (int distance = 1; distance < 4; distance *= 2) {
          const bool high = q & distance;
#pragma unroll
          for (int k = 0; k < 4; k++)
            if (!(k & distance)) {
              const uint32_t other = __shfl_xor_sync(allLanes, high ? v[k] : v[k + distance], distance);
              if (high) v[k] = other;
              else v[k + distance] = other;
            }
        }
        if (head >= 0) *(uint4*)(to + 8 * (j + q)) = make_uint4(v[0], v[1], v[2], v[3]);
      }
    }
  }
}

#define WIDE_PROMPT(type, size)                                                                                                                        \
  KERNEL __launch_bounds__(384, 1) wide_prompt_##type##_##size(const __grid_constant__ WidePromptArguments w) { widePrompt<type, size, false>(w); } \
  KERNEL __launch_bounds__(384, 1) wide_prompt_capped_##type##_##size(const __grid_constant__ WidePromptArguments w) { widePrompt<type, size, true>(w); }
OF_16_BITS(WIDE_PROMPT)
#endif
