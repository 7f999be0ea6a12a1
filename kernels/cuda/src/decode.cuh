// Attention on tensor cores. Chunk is the arithmetic of one warp over 16 query
// rows (or 8) and 64 keys; decode is its use for one token a sequence.
//
// Products over a head's dimensions take them 16 at a time in their own order, as
// wgmma does (wideprompt.cuh), so that all three kernels give the same bits. In the
// products with values a lane takes dimensions r·size/8 …, which lie together: an
// order of outputs, which says nothing.
#pragma once
#include "attention.cuh"

template <class T, int HD, bool WIDE> struct Chunk {
  static constexpr int parts = HD / 32, pieces = HD / 64;
  uint4 q[parts][WIDE ? 2 : 1];
  float s[8][4]; // scores: keys 8j + 2q, + 1; rows r and r + 8
  float high[2], sum[2];

  // Dimensions 32i + 2q …, + 8, + 16, + 24 of a row of queries.
  static DEVICE uint4 part(const T* row, int i, int q) {
    const uint32_t* at = (const uint32_t*)(row + i * 32) + q;
    return make_uint4(at[0], at[4], at[8], at[12]);
  }
  // One page of 16 keys: key(n, i) gives the same dimensions of key 8n + r.
  template <class K> DEVICE void multiplyKeys(int page, K key) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
      float(&d)[4] = s[page * 2 + n];
      d[0] = d[1] = d[2] = d[3] = 0;
#pragma unroll
      for (int i = 0; i < parts; i++) {
        uint4 k = key(n, i), hi = WIDE ? q[i][WIDE ? 1 : 0] : make_uint4(0, 0, 0, 0);
        multiply<T>(d, make_uint4(q[i][0].x, hi.x, q[i][0].y, hi.y), k.x, k.y);
        multiply<T>(d, make_uint4(q[i][0].z, hi.z, q[i][0].w, hi.w), k.z, k.w);
      }
    }
  }
  // Scores to weights: sees(row half, key) tells what a row may see; with `all`, everything.
  template <class S> DEVICE void weigh(float scale, float softcap, int lane, bool all, S sees) {
    constexpr int PER = WIDE ? 4 : 2;
    if (softcap > 0) {
#pragma unroll
      for (int j = 0; j < 8; j++)
#pragma unroll
        for (int e = 0; e < PER; e++) s[j][e] = score(s[j][e], scale, softcap);
    }
    if (!all) {
#pragma unroll
      for (int j = 0; j < 8; j++)
#pragma unroll
        for (int e = 0; e < PER; e++)
          if (!sees(e / 2, 8 * j + 2 * (lane % 4) + e % 2)) s[j][e] = -INFINITY;
    }
    weighScores(softcap > 0 ? 1.f : exponent(scale));
  }
  // A score without a cap times this is a power of two's exponent.
  static DEVICE float exponent(float scale) { return scale * log2e; }
  DEVICE void weighScores(float factor) {
#pragma unroll
    for (int h = 0; h < (WIDE ? 2 : 1); h++) {
      float m = -INFINITY, l = 0;
#pragma unroll
      for (int j = 0; j < 8; j++) m = fmaxf(m, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
      m = fmaxf(m, __shfl_xor_sync(allLanes, m, 1));
      m = fmaxf(m, __shfl_xor_sync(allLanes, m, 2));
      m = __fmul_rn(m, factor);
      const float from = m == -INFINITY ? 0.f : -m; // all masked: weights of 0, not of NaN
#pragma unroll
      for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int e = 0; e < 2; e++) s[j][2 * h + e] = power(__fmaf_rn(s[j][2 * h + e], factor, from));
        l += s[j][2 * h] + s[j][2 * h + 1];
      }
      l += __shfl_xor_sync(allLanes, l, 1);
      l += __shfl_xor_sync(allLanes, l, 2);
      high[h] = m, sum[h] = l;
    }
  }
  DEVICE uint4 weights(int page) const {
    const float(&a)[4] = s[2 * page], (&b)[4] = s[2 * page + 1];
    return make_uint4(pair<T>(a[0], a[1]), WIDE ? pair<T>(a[2], a[3]) : 0u, pair<T>(b[0], b[1]), WIDE ? pair<T>(b[2], b[3]) : 0u);
  }
  // o[2d, 2d+1] += weights · values; v holds 16 bytes of keys 2q, 2q+1, 2q+8, 2q+9.
  static DEVICE void multiplyValues(float (&o)[8][4], uint4 p, const uint4 (&v)[4]) {
    const uint32_t x[4][4] = {{v[0].x, v[0].y, v[0].z, v[0].w}, {v[1].x, v[1].y, v[1].z, v[1].w}, {v[2].x, v[2].y, v[2].z, v[2].w}, {v[3].x, v[3].y, v[3].z, v[3].w}};
#pragma unroll
    for (int d = 0; d < 4; d++) {
      multiply<T>(o[2 * d], p, __byte_perm(x[0][d], x[1][d], 0x5410), __byte_perm(x[2][d], x[3][d], 0x5410));
      multiply<T>(o[2 * d + 1], p, __byte_perm(x[0][d], x[1][d], 0x7632), __byte_perm(x[2][d], x[3][d], 0x7632));
    }
  }
};

// What turnHead does to a head of HD dimensions, with all that does not depend on
// the row's products read beforehand: lane by lane the same operations.
template <int HD> struct Turn {
  float2 angle[HD / 64];
  float gain[2][HD / 32]; // of queries, of keys
  DEVICE void prepare(const AttentionArguments& a, int position, int lane) {
#pragma unroll
    for (int i = 0; i < HD / 64; i++) angle[i] = a.rope && lane + 32 * i < a.pairs ? a.rope[size_t(position) * a.pairs + lane + 32 * i] : make_float2(1, 0);
#pragma unroll
    for (int i = 0; i < HD / 32; i++) gain[0][i] = a.qGain ? a.qGain[lane + 32 * i] : 1.f, gain[1][i] = a.kGain ? a.kGain[lane + 32 * i] : 1.f;
  }
  // Whether inPlace does all that is to be done.
  static DEVICE bool simple(const AttentionArguments& a) { return a.rope && !a.interleaved && 2 * a.pairs == HD && !a.qBias && !a.kBias && a.qNorm < 1 && a.kNorm < 1; }
  // A query or a key in registers alone.
  DEVICE void inPlace(const AttentionArguments& a, float (&v)[HD / 32], bool key) const {
    if ((key ? a.kNorm : a.qNorm) == 0) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < HD / 32; i++) sum += v[i] * v[i];
      const float scale = 1.f / sqrtf(warpSum(sum) / a.size + (key ? a.kEps : a.qEps));
#pragma unroll
      for (int i = 0; i < HD / 32; i++) {
        v[i] = v[i] * scale;
        if (key ? a.kGain : a.qGain) v[i] *= key ? gain[1][i] : gain[0][i];
      }
    }
#pragma unroll
    for (int k = 0; k < HD / 64; k++) {
      const float2 t = angle[k];
      const float u = v[k], w = v[k + HD / 64];
      v[k] = __fsub_rn(__fmul_rn(u, t.x), __fmul_rn(w, t.y));
      v[k + HD / 64] = __fadd_rn(__fmul_rn(w, t.x), __fmul_rn(u, t.y));
    }
  }
  DEVICE void apply(const AttentionArguments& a, const float (&v)[HD / 32], int h, int lane, float* head) const {
    const bool key = h >= a.heads, value = h >= a.heads + a.kvHeads;
    const int kind = value ? -1 : key ? a.kNorm : a.qNorm;
    const float* bias = key ? a.kBias : a.qBias;
    float mean = 0, scale = 1;
    if (kind >= 0) {
      float sum = 0;
      if (kind == 1) {
#pragma unroll
        for (int i = 0; i < HD / 32; i++) sum += v[i];
        mean = warpSum(sum) / a.size, sum = 0;
      }
#pragma unroll
      for (int i = 0; i < HD / 32; i++) sum += (v[i] - mean) * (v[i] - mean);
      scale = 1.f / sqrtf(warpSum(sum) / a.size + (key ? a.kEps : a.qEps));
    }
#pragma unroll
    for (int i = 0; i < HD / 32; i++) {
      float u = v[i];
      if (kind >= 0) {
        u = (u - mean) * scale;
        if (key ? a.kGain : a.qGain) u *= key ? gain[1][i] : gain[0][i];
        if (bias) u += bias[lane + 32 * i];
      }
      head[lane + 32 * i] = u;
    }
    __syncwarp();
    if (a.rope && !value) {
#pragma unroll
      for (int k = 0; k < HD / 64; k++) {
        const int i = lane + 32 * k, lo = a.interleaved ? 2 * i : i, hi = a.interleaved ? 2 * i + 1 : i + a.pairs;
        if (i >= a.pairs) break;
        float2 t = angle[k];
        float u = head[lo], w = head[hi];
        head[lo] = __fsub_rn(__fmul_rn(u, t.x), __fmul_rn(w, t.y));
        head[hi] = __fadd_rn(__fmul_rn(w, t.x), __fmul_rn(u, t.y));
      }
      __syncwarp();
    }
  }
};

// decode: attention of rows that are their sequence's only one in the batch, with
// the rotation and the storing of their queries, keys and values.
//
// qkv: (rows, (heads + 2 kvHeads)·HD) float32. out: (rows, heads·HD) T. Cache as in
// attention.cuh. Grid: KV heads × items × splits, 4 warps. All query heads of a KV
// head share its loads. A chunk's keys are a tile and its values the next; tiles come
// through a ring in shared memory. Those of earlier tokens are on their way before the
// products that make qkv have ended.
// Warp w multiplies the keys of page w, then a quarter of the value dimensions.
// With one split a block walks all chunks; with more it has one chunk, whose result
// goes to memory, and the last block of an item merges them in order.
// Memory bound: 4·context·HD bytes per KV head. Reference: ref.Attention.
constexpr int decodeThreads = 128;

// The tiles of an item's KV head, asked for one after the other by all threads.
template <class T, int HD> struct Walk {
  static constexpr int rowBytes = HD * 2, PIECES = HD / 8, KEYSPER = decodeThreads / PIECES; // keys of a tile that all threads copy at once
  const int* table;
  int kv, first, there;  // keys [first, there) are in the cache
  int chunk, end, value; // what comes next: a chunk's keys, or its values
  int4 blocks, next;     // a chunk's four blocks are read one chunk ahead of its keys

  DEVICE void begin(const AttentionArguments& a, const int* itsTable, int head, int position, int from, int to) {
    table = itsTable, kv = head, there = a.stored ? position + 1 : position, first = a.window > 0 ? max(0, position - a.window + 1) : 0;
    chunk = first / chunkKeys + from, end = first / chunkKeys + to, value = 0;
    next = blocksOf(chunk);
  }
  DEVICE int4 blocksOf(int c) const { return c < end ? *(const int4*)(table + c * 4) : make_int4(-1, -1, -1, -1); }
  DEVICE bool over() const { return chunk >= end; }
  DEVICE void fetch(const AttentionArguments& a, uint32_t to) {
    const int myKey = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
    if (!value) blocks = next, next = blocksOf(chunk + 1);
    const T* cache = (const T*)(value ? a.v : a.k) + (size_t(kv) * blockTokens + myKey) * HD + piece * 8;
    const uint32_t at = to + myKey * rowBytes + ((piece ^ (myKey & 7)) << 4);
    const int key0 = chunk * chunkKeys + myKey;
#pragma unroll
    for (int page = 0; page < 4; page++) {
      const int b = page == 0 ? blocks.x : page == 1 ? blocks.y : page == 2 ? blocks.z : blocks.w;
      const T* source = cache + size_t(max(b, 0)) * a.blockStride;
#pragma unroll
      for (int n = 0; n < blockTokens / KEYSPER; n++) {
        const int key = page * blockTokens + n * KEYSPER, p = key0 + key;
        copyAsync(at + key * rowBytes, source + n * KEYSPER * HD, b >= 0 && p < there && p >= first ? 16 : 0);
      }
    }
    chunk += value, value ^= 1;
  }
};

template <class T, int HD, bool WIDE> DEVICE void decode(const AttentionArguments& a) {
  using C = Chunk<T, HD, WIDE>;
  constexpr int ROWS = WIDE ? 16 : 8, HALVES = WIDE ? 2 : 1, NT = HD / 32; // NT: value tiles of a warp
  constexpr int rowBytes = HD * 2, tileBytes = chunkKeys * rowBytes, pitch = chunkKeys + 8, queryPitch = HD + 8, PIECES = HD / 8;
  extern __shared__ __align__(128) char memory[]; // tiles of the ring
  __shared__ __align__(16) T queries[ROWS * queryPitch], newest[2 * HD];
  __shared__ float scores[ROWS * pitch], heads[4 * HD];
  __shared__ int outHeads[ROWS]; // of the queries, or -1
  __shared__ bool complete;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, r = lane / 4, q = lane % 4;
  const DecodeItem item = ((const DecodeItem*)a.items)[blockIdx.y];
  const int kv = blockIdx.x, m = item.row, G = a.group;
  const int position = item.position, first = a.window > 0 ? max(0, position - a.window + 1) : 0;
  const int chunk0 = first / chunkKeys, chunks = position / chunkKeys + 1 - chunk0;
  const bool split = gridDim.z > 1;
  const int from = split ? blockIdx.z : 0, to = split ? from + 1 : chunks;
  if (a.stored || from >= chunks) chain();
  if (from >= chunks) return;

  Walk<T, HD> walk;
  walk.begin(a, a.tables + item.span * a.stride, kv, position, from, to);
  int fetchSlot = 0, slot = 0;
  auto fetch = [&] {
    if (!walk.over()) {
      walk.fetch(a, shared(memory) + fetchSlot * tileBytes);
      if (++fetchSlot == a.stages) fetchSlot = 0;
    }
    commitCopies();
  };
  bool full = true; // the ring is, until a tile was read
  auto take = [&] {
    switch (full ? a.stages : a.stages - 1) {
      case 2: waitCopies<1>(); break;
      case 3: waitCopies<2>(); break;
      case 4: waitCopies<3>(); break;
      case 5: waitCopies<4>(); break;
      default: waitCopies<5>();
    }
    __syncthreads();
    if (!full) fetch();
    full = false;
    char* at = memory + slot * tileBytes;
    if (++slot == a.stages) slot = 0;
    return at;
  };
  for (int s = 0; s < a.stages; s++) fetch();
  const int newestBlock = to == chunks ? walk.table[position / blockTokens] : -1;
  constexpr int SLOTS = (ROWS + 2 + 3) / 4; // heads that a warp turns
  const int turned = G + (to == chunks ? 2 : 0); // the last two: the newest key and value
  const int ours = lane < G ? a.groups[kv * G + lane] : lane < turned ? a.heads + (lane - G) * a.kvHeads + kv : -1; // of them
  if (warp == 0 && lane < G) outHeads[lane] = ours;
  for (int i = thread; i < (ROWS - G) * HD; i += decodeThreads) queries[(G + i / HD) * queryPitch + i % HD] = narrow<T>(0.f);
  if (a.stored) {
    for (int i = thread; i < G * PIECES; i += decodeThreads) {
      const int g = i / PIECES, head = a.groups[kv * G + g];
      *(uint4*)(queries + g * queryPitch + i % PIECES * 8) = head >= 0 ? *(const uint4*)((const T*)a.q + (size_t(m) * a.heads + head) * HD + i % PIECES * 8) : make_uint4(0, 0, 0, 0);
    }
  } else {
    Turn<HD> turn;
    turn.prepare(a, position, lane);
    const bool simple = Turn<HD>::simple(a);
    const float* x = a.qkv + size_t(m) * (a.heads + 2 * a.kvHeads) * HD + lane;
    chain();
    float v[SLOTS][HD / 32];
#pragma unroll
    for (int s = 0; s < SLOTS; s++) { // all at once, not one latency after the other
      const int h = __shfl_sync(allLanes, ours, warp + 4 * s);
#pragma unroll
      for (int i = 0; i < HD / 32; i++) v[s][i] = h >= 0 ? x[size_t(h) * HD + 32 * i] : 0.f;
    }
#pragma unroll
    for (int s = 0; s < SLOTS; s++) {
      const int g = warp + 4 * s, h = __shfl_sync(allLanes, ours, g);
      if (g >= turned) break;
      float* head = heads + warp * HD;
      if (simple) {
        if (g <= G) turn.inPlace(a, v[s], g == G);
      } else if (h >= 0) {
        turn.apply(a, v[s], h, lane, head);
#pragma unroll
        for (int i = 0; i < HD / 32; i++) v[s][i] = head[lane + 32 * i];
        __syncwarp();
      }
      T* to = g >= G ? newest + (g - G) * HD : queries + g * queryPitch;
#pragma unroll
      for (int i = 0; i < HD / 32; i++) to[lane + 32 * i] = narrow<T>(v[s][i]);
    }
  }
  __syncthreads();
  if (!a.stored && to == chunks && thread < 2 * HD / 8) { // the newest key and value into the cache
    int value = thread / (HD / 8), piece = thread % (HD / 8), b = newestBlock;
    size_t at = size_t(b) * a.blockStride + (size_t(kv) * blockTokens + position % blockTokens) * HD + piece * 8;
    if (b >= 0) *(uint4*)((T*)(value ? a.v : a.k) + at) = *(const uint4*)(newest + value * HD + piece * 8);
  }
  C c;
#pragma unroll
  for (int h = 0; h < HALVES; h++)
#pragma unroll
    for (int i = 0; i < C::parts; i++) c.q[i][h] = loadMatrix(shared(queries) + ((lane % 8 + 8 * h) * queryPitch + lane / 8 * 8 + i * 32) * 2);

  float out[NT][4], high[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
  for (int j = 0; j < NT; j++) out[j][0] = out[j][1] = out[j][2] = out[j][3] = 0;
  for (int chunk = from; chunk < to; chunk++) {
    const int key0 = (chunk0 + chunk) * chunkKeys;
    const bool newer = !a.stored && chunk == chunks - 1;
    auto tile = [&](int value) {
      char* at = take();
      if (newer) {
        const int key = position % chunkKeys;
        if (thread < PIECES) *(uint4*)(at + key * rowBytes + ((thread ^ (key & 7)) << 4)) = *(const uint4*)(newest + value * HD + thread * 8);
        __syncthreads();
      }
      return shared(at);
    };
    const uint32_t keys = tile(0);
    c.multiplyKeys(0, [&](int n, int i) {
      int key = warp * 16 + n * 8 + lane % 8;
      return loadMatrix(keys + key * rowBytes + (((4 * i + lane / 8) ^ (key & 7)) << 4));
    });
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int e = 0; e < 2 * HALVES; e++) {
        int key = warp * 16 + n * 8 + 2 * q + e % 2;
        bool sees = key0 + key >= first && key0 + key <= position;
        scores[(r + e / 2 * 8) * pitch + key] = !sees ? -INFINITY : a.softcap > 0 ? score(c.s[n][e], a.scale, a.softcap) : c.s[n][e];
      }
    const uint32_t values = tile(1);
#pragma unroll
    for (int h = 0; h < HALVES; h++)
#pragma unroll
      for (int j = 0; j < 8; j++) {
        float2 v = *(const float2*)(scores + (r + 8 * h) * pitch + 8 * j + 2 * q);
        c.s[j][2 * h] = v.x, c.s[j][2 * h + 1] = v.y;
      }
    c.weighScores(a.softcap > 0 ? 1.f : C::exponent(a.scale));
    float o[NT][4];
#pragma unroll
    for (int j = 0; j < NT; j++) o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0;
#pragma unroll
    for (int p = 0; p < 4; p++) {
      const uint4 w = c.weights(p);
#pragma unroll
      for (int j = 0; j < NT / 2; j++) {
        const int key = p * 16 + lane % 16, part = warp * NT + 2 * j + lane / 16;
        uint4 v = loadMatrixTurned(values + key * rowBytes + ((part ^ (key & 7)) << 4));
        multiply<T>(o[2 * j], w, v.x, v.y);
        multiply<T>(o[2 * j + 1], w, v.z, v.w);
      }
    }
    if (split) {
      float* results = a.partial + (size_t(blockIdx.y) * a.kvHeads + kv) * a.chunksMax * G * (HD + 4);
      float* stats = results + size_t(a.chunksMax) * G * HD;
#pragma unroll
      for (int h = 0; h < HALVES; h++)
        if (r + 8 * h < G) {
          float* at = results + (size_t(chunk) * G + r + 8 * h) * HD + warp * NT * 8 + 2 * q;
#pragma unroll
          for (int j = 0; j < NT; j++) __stcg((float2*)(at + 8 * j), make_float2(o[j][2 * h], o[j][2 * h + 1]));
          if (warp == 0 && q == 0) __stcg((float2*)(stats + (size_t(chunk) * G + r + 8 * h) * 2), make_float2(c.high[h], c.sum[h]));
        }
      break;
    }
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
      float keep, take;
      mergeFactors(high[h], sum[h], c.high[h], c.sum[h], keep, take);
#pragma unroll
      for (int j = 0; j < NT; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) out[j][2 * h + e] = merged(out[j][2 * h + e], o[j][2 * h + e], keep, take);
    }
  }
  if (!split) {
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
      const int g = r + 8 * h, head = g < G ? outHeads[g] : -1;
      if (head < 0) continue;
      const float scale = inverse(sum[h]);
      T* at = (T*)a.out + (size_t(m) * a.heads + head) * HD + warp * NT * 8 + 2 * q;
#pragma unroll
      for (int j = 0; j < NT; j++) *(uint32_t*)(at + 8 * j) = pair<T>(out[j][2 * h] * scale, out[j][2 * h + 1] * scale);
    }
    return;
  }
  __threadfence();
  __syncthreads();
  if (thread == 0) complete = atomicInc(a.arrived + blockIdx.y * a.kvHeads + kv, chunks - 1) == chunks - 1;
  __syncthreads();
  if (!complete) return;
  __threadfence();
  const float* results = a.partial + (size_t(blockIdx.y) * a.kvHeads + kv) * a.chunksMax * G * (HD + 4);
  const float* stats = results + size_t(a.chunksMax) * G * HD;
  for (int i = 4 * thread; i < G * HD; i += 4 * decodeThreads) {
    const int g = i / HD, head = a.groups[kv * G + g];
    float h = -INFINITY, l = 0, keep, take;
    float4 u = make_float4(0, 0, 0, 0);
    constexpr int BATCH = 8; // loads on their way at once
    for (int n = 0; n < chunks; n += BATCH) {
      float4 o[BATCH];
      float2 s[BATCH];
#pragma unroll
      for (int k = 0; k < BATCH; k++) {
        int at = min(n + k, chunks - 1) * G;
        o[k] = __ldcg((const float4*)(results + size_t(at) * HD + i));
        s[k] = __ldcg((const float2*)(stats + size_t(at + g) * 2));
      }
#pragma unroll
      for (int k = 0; k < BATCH; k++) {
        if (n + k >= chunks) break;
        mergeFactors(h, l, s[k].x, s[k].y, keep, take);
        u = make_float4(merged(u.x, o[k].x, keep, take), merged(u.y, o[k].y, keep, take), merged(u.z, o[k].z, keep, take), merged(u.w, o[k].w, keep, take));
      }
    }
    if (head < 0) continue;
    l = inverse(l);
    *(uint2*)((T*)a.out + (size_t(m) * a.heads + head) * HD + i % HD) = make_uint2(pair<T>(u.x * l, u.y * l), pair<T>(u.z * l, u.w * l));
  }
}

#define DECODE(type, size)                                                                                                              \
  KERNEL __launch_bounds__(decodeThreads, 4) decode_##type##_##size(const __grid_constant__ AttentionArguments a) { decode<type, size, false>(a); }  \
  KERNEL __launch_bounds__(decodeThreads) decode_wide_##type##_##size(const __grid_constant__ AttentionArguments a) { decode<type, size, true>(a); }
OF_16_BITS(DECODE)
