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

struct alignas(128) WidePromptArguments {
  AttentionArguments a;
  CUtensorMap keys, values; // size, slots: pages of 16 slots × 64 dimensions under the 128-byte swizzle
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
template <class T, int HD> DEVICE void widePrompt(const WidePromptArguments& w) {
  using C = Chunk<T, HD, true>;
  constexpr int PARTS = HD / 64, KEYS = 2 * chunkKeys, STAGES = 2, ROWS = 128;
  constexpr int partBytes = KEYS * 128, tileBytes = PARTS * partBytes, queryBytes = PARTS * 8192; // of a warpgroup
  extern __shared__ __align__(128) char memory[];
  __shared__ __align__(8) uint64_t barriers[4 * STAGES];
  const AttentionArguments& a = w.a;
  char* aligned = memory + (1024 - shared(memory) % 1024) % 1024;
  const uint32_t queries = shared(aligned), keysAt = queries + 2 * queryBytes, valuesAt = keysAt + STAGES * tileBytes;
  const uint32_t fullKeys = shared(barriers), fullValues = fullKeys + 8 * STAGES, emptyKeys = fullValues + 8 * STAGES, emptyValues = emptyKeys + 8 * STAGES;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) initBarrier(fullKeys + 8 * s, 1), initBarrier(fullValues + 8 * s, 1), initBarrier(emptyKeys + 8 * s, 2), initBarrier(emptyValues + 8 * s, 2);
    fenceBarriers();
  }
  __syncthreads();
  chain();
  const int kv = blockIdx.x, item = gridDim.y - 1 - blockIdx.y, span = a.items[2 * item], f0 = a.items[2 * item + 1], G = a.group;
  const int row0 = a.spanRow[span], count = a.spanRow[span + 1] - row0, start = a.position[row0], written = start + count;
  const int lastToken = min(count - 1, (f0 + ROWS - 1) / G), low = start + f0 / G;
  const int firstKey = a.window > 0 ? max(0, low - a.window + 1) : 0;
  const int pair0 = firstKey / KEYS, pairEnd = (start + lastToken) / KEYS + 1;

  if (threadIdx.x >= 256) {
    lowerRegisters<24>();
    if (threadIdx.x >= 288) return;
    const int lane = threadIdx.x % 32, page = lane / PARTS, part = lane % PARTS;
    const int* table = a.tables + span * a.stride;
    RingSlot ring;
    for (int pair = pair0; pair < pairEnd; pair++) {
      const int at = pair * (KEYS / blockTokens) + page, block = page < 8 && at * blockTokens < written ? table[at] : -1;
      const int row = block >= 0 ? (block * a.kvHeads + kv) * blockTokens : -blockTokens; // outside: zeros
      const uint32_t to = ring.slot * tileBytes + part * partBytes + page * blockTokens * 128;
#pragma unroll
      for (int v = 0; v < 2; v++) {
        const uint32_t full = (v ? fullValues : fullKeys) + 8 * ring.slot;
        waitBarrier((v ? emptyValues : emptyKeys) + 8 * ring.slot, ring.phase ^ 1);
        if (lane == 0) expectBytes(full, tileBytes);
        __syncwarp();
        if (page < 8) copyTile((v ? valuesAt : keysAt) + to, v ? &w.values : &w.keys, part * 64, row, full);
      }
      ring.next<STAGES>();
    }
    return;
  }
  raiseRegisters<240>();
  const int group = threadIdx.x / 128, thread = threadIdx.x % 128, lane = thread % 32, r = lane / 4, q = lane % 4;
  const int g0 = f0 + group * 64, w0 = g0 + thread / 32 * 16; // first query row of the warpgroup, of the warp
  for (int i = thread; i < 64 * HD / 8; i += 128) {
    const int m = i / (HD / 8), piece = i % (HD / 8), f = g0 + m, head = f < count * G ? a.groups[kv * G + f % G] : -1;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (head >= 0) v = *(const uint4*)((const T*)a.q + (size_t(row0 + f / G) * a.heads + head) * HD + piece * 8);
    *(uint4*)(aligned + group * queryBytes + piece / 8 * 8192 + m * 128 + ((piece % 8 ^ (m & 7)) << 4)) = v;
  }
  fenceEngine();
  syncSome(1 + group, 128);

  const int full = count * G; // query rows of this span
  int position[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int f = w0 + r + 8 * h;
    position[h] = f < full && a.groups[kv * G + f % G] >= 0 ? start + f / G : -1;
  }
  // Keys from seenFrom up to seenTo are seen by every row of this warp.
  const int seenTo = w0 + 16 <= full ? start + w0 / G : -1, seenFrom = a.window > 0 ? start + (w0 + 15) / G - a.window + 1 : 0;
  float scores[64], o[HD / 2], out[HD / 2], high[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < HD / 2; i++) out[i] = 0;

  // Where a factor begins is computed at each product: the compiler would keep all 24 in registers.
  auto base = [](uint32_t at, int near) {
    uint32_t low = uint32_t(factor(at, swizzledTiles, near, 1024));
    asm volatile("" : "+r"(low));
    return low;
  };
  auto place = [](uint32_t low, int bytes) { return factor(0, swizzledTiles, 0, 1024) | (low + (bytes >> 4)); };
  auto multiplyKeys = [&](int slot, int phase) {
    waitBarrier(fullKeys + 8 * slot, phase);
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
  auto weigh = [&](C& c, uint4 (&p)[4], int half, int key0) {
#pragma unroll
    for (int i = 0; i < 32; i++) c.s[i / 4][i % 4] = scores[half * 32 + i];
    const bool all = key0 >= seenFrom && key0 + chunkKeys - 1 <= seenTo;
    c.weigh(a.scale, a.softcap, lane, all, [&](int h, int key) {
      return key0 + key <= position[h] && (a.window <= 0 || key0 + key > position[h] - a.window);
    });
#pragma unroll
    for (int page = 0; page < 4; page++) p[page] = c.weights(page);
  };
  auto merge = [&](const C& c) {
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
  C first, last; // the chunks of a stage, and their weights
  uint4 firstWeights[4], lastWeights[4];
  multiplyKeys(0, 0);
  waitProducts<0>();
  hold(scores);
  if (thread == 0) arrive(emptyKeys);
  weigh(first, firstWeights, 0, pair0 * KEYS);
  int key0 = pair0 * KEYS;
#pragma unroll 1
  for (; key0 + KEYS < pairEnd * KEYS; key0 += KEYS) {
    const int slot = ring.slot;
    waitBarrier(fullValues + 8 * slot, ring.phase);
    multiplyValues(firstWeights, slot, 0);
    weigh(last, lastWeights, 1, key0 + chunkKeys);
    ring.next<STAGES>();
    multiplyKeys(ring.slot, ring.phase);
    waitProducts<1>();
    hold(o);
    merge(first);
    multiplyValues(lastWeights, slot, 1);
    waitProducts<1>();
    hold(scores);
    if (thread == 0) arrive(emptyKeys + 8 * ring.slot);
    weigh(first, firstWeights, 0, key0 + KEYS);
    waitProducts<0>();
    hold(o);
    if (thread == 0) arrive(emptyValues + 8 * slot);
    merge(last);
  }
  waitBarrier(fullValues + 8 * ring.slot, ring.phase);
  if (const int used = written - key0; used < KEYS && used % blockTokens) { // slots of the last page that nobody wrote hold anything
    const int left = blockTokens - used % blockTokens;
    for (int i = thread; i < left * PARTS * 8; i += 128)
      *(uint4*)(aligned + (valuesAt - queries) + ring.slot * tileBytes + i / (left * 8) * partBytes + (used + i / 8 % left) * 128 + i % 8 * 16) = make_uint4(0, 0, 0, 0);
    fenceEngine();
    syncSome(1 + group, 128);
  }
  multiplyValues(firstWeights, ring.slot, 0);
  weigh(last, lastWeights, 1, key0 + chunkKeys);
  waitProducts<0>();
  hold(o);
  merge(first);
  multiplyValues(lastWeights, ring.slot, 1);
  waitProducts<0>();
  hold(o);
  merge(last);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int f = w0 + r + 8 * h, head = f < full ? a.groups[kv * G + f % G] : -1;
    if (head < 0) continue;
    T* to = (T*)a.out + (size_t(row0 + f / G) * a.heads + head) * HD + 2 * q;
#pragma unroll
    for (int j = 0; j < HD / 8; j++) *(uint32_t*)(to + 8 * j) = ::pair<T>(out[4 * j + 2 * h] / sum[h], out[4 * j + 2 * h + 1] / sum[h]);
  }
}

#define WIDE_PROMPT(type, size) \
  KERNEL __launch_bounds__(384, 1) wide_prompt_##type##_##size(const __grid_constant__ WidePromptArguments w) { widePrompt<type, size>(w); }
WIDE_PROMPT(bf16, 64) WIDE_PROMPT(bf16, 128) WIDE_PROMPT(f16, 64) WIDE_PROMPT(f16, 128)
#endif
