// Attention on tensor cores. Chunk is the arithmetic of one warp over 16 query
// rows (or 8) and 64 keys; decode is its use for one token a sequence.
//
// The 16-bit products take their columns in an order in which every lane reads 16
// contiguous bytes: query and key dimensions 32i + 8q … 32i + 8q + 7 by lane
// 4r + q, value dimensions r·size/8 … by the same. A permutation of both factors
// leaves the sum what it is; prompt.cuh uses the same one, so results are the same bits.
#pragma once
#include "attention.cuh"

template <class T, int HD, bool WIDE> struct Chunk {
  static constexpr int parts = HD / 32, pieces = HD / 64;
  uint4 q[parts][WIDE ? 2 : 1];
  float s[8][4]; // scores: keys 8j + 2q, + 1; rows r and r + 8
  float high[2], sum[2];

  // One page of 16 keys: key(n, i) gives 16 bytes of key 8n + r.
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
  // Scores to weights: sees(row half, key) tells what a row may see.
  template <class S> DEVICE void weigh(float scale, float softcap, int lane, S sees) {
#pragma unroll
    for (int h = 0; h < (WIDE ? 2 : 1); h++) {
      float m = -INFINITY, l = 0;
#pragma unroll
      for (int j = 0; j < 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float& v = s[j][2 * h + e];
          v = sees(h, 8 * j + 2 * (lane % 4) + e) ? score(v, scale, softcap) : -INFINITY;
          m = fmaxf(m, v);
        }
      m = fmaxf(m, __shfl_xor_sync(allLanes, m, 1));
      m = fmaxf(m, __shfl_xor_sync(allLanes, m, 2));
#pragma unroll
      for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float& v = s[j][2 * h + e];
          v = v == -INFINITY ? 0.f : exp2f(v - m);
        }
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

// decode: attention of rows that are their sequence's only one in the batch.
//
// q: (rows, heads, HD) T. out: (rows, heads·HD) T. Cache as in attention.cuh.
// Grid: KV heads × items × splits, 2 or 4 warps. All query heads of a KV head
// share its loads, which go from the cache straight into fragments. With one
// split a block walks all chunks; with more, every chunk's result goes to memory
// and the last block of an item merges them in order.
// Memory bound: 4·context·HD bytes per KV head. Reference: ref.Attention.
template <class T, int HD, bool WIDE> DEVICE void decode(const AttentionArguments& a) {
  using C = Chunk<T, HD, WIDE>;
  constexpr int ROWS = WIDE ? 16 : 8, pieces = C::pieces, perRow = HD / 8; // dimensions of a lane's row in values
  extern __shared__ __align__(16) float results[];
  __shared__ bool complete;
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, q = lane % 4;
  const int kv = blockIdx.x, m = a.items[blockIdx.y], G = a.group;
  float* o = results;                    // warp × ROWS × HD
  float* stats = o + warps * ROWS * HD;  // warp × ROWS × (m, l)
  float* run = stats + warps * ROWS * 2; // ROWS × HD: what is merged
  float* runStats = run + ROWS * HD;     // ROWS × (m, l)
  const int position = a.position[m], first = a.window > 0 ? max(0, position - a.window + 1) : 0;
  const int chunk0 = first / chunkKeys, chunks = position / chunkKeys + 1 - chunk0;
  const bool split = gridDim.z > 1 && chunks > warps;
  const int chunkFrom = split || gridDim.z == 1 ? blockIdx.z * warps : blockIdx.z == 0 ? 0 : chunks;
  if (chunkFrom >= chunks) {
    chain();
    return;
  }
  const int* table = a.tables + a.rowSpan[m] * a.stride;
  chain();
  C c;
#pragma unroll
  for (int h = 0; h < (WIDE ? 2 : 1); h++) {
    int g = r + 8 * h, head = g < G ? a.groups[kv * G + g] : -1;
#pragma unroll
    for (int i = 0; i < C::parts; i++)
      c.q[i][h] = head >= 0 ? *(const uint4*)((const T*)a.q + (size_t(m) * a.heads + head) * HD + i * 32 + q * 8) : make_uint4(0, 0, 0, 0);
  }
  for (int i = threadIdx.x; i < ROWS * HD; i += blockDim.x) run[i] = 0;
  if (threadIdx.x < ROWS) runStats[2 * threadIdx.x] = -INFINITY, runStats[2 * threadIdx.x + 1] = 0;

  for (int round = chunkFrom; round < chunks; round += warps) {
    const int chunk = round + warp, key0 = (chunk0 + chunk) * chunkKeys;
    if (chunk < chunks) {
      const T *k[4], *v[4];
#pragma unroll
      for (int p = 0; p < 4; p++) {
        int at = key0 + p * blockTokens, b = at <= position && at + blockTokens > first ? table[at / blockTokens] : -1;
        k[p] = b >= 0 ? (const T*)a.k + b * a.blockStride + size_t(kv) * blockTokens * HD : nullptr;
        v[p] = b >= 0 ? (const T*)a.v + b * a.blockStride + size_t(kv) * blockTokens * HD : nullptr;
      }
      const uint4 zero = make_uint4(0, 0, 0, 0);
      uint4 kr[2][2][C::parts];
      auto loadKeys = [&](int p) {
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
          for (int i = 0; i < C::parts; i++) kr[p % 2][n][i] = k[p] ? loadOnce(k[p] + (n * 8 + r) * HD + i * 32 + q * 8) : zero;
      };
      uint4 vr[2][pieces][4];
      auto loadValues = [&](int p) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
          int t = j / 2 * 8 + 2 * q + j % 2;
          bool there = v[p] && key0 + p * blockTokens + t <= position;
#pragma unroll
          for (int h = 0; h < pieces; h++) vr[p % 2][h][j] = there ? loadOnce(v[p] + t * HD + r * perRow + h * 8) : zero;
        }
      };
      loadKeys(0);
#pragma unroll
      for (int p = 0; p < 4; p++) {
        if (p < 3) loadKeys(p + 1);
        else loadValues(0);
        c.multiplyKeys(p, [&](int n, int i) { return kr[p % 2][n][i]; });
      }
      c.weigh(a.scale, a.softcap, lane, [&](int h, int key) { return r + 8 * h < G && key0 + key >= first && key0 + key <= position; });
      float acc[pieces][8][4];
#pragma unroll
      for (int h = 0; h < pieces; h++)
#pragma unroll
        for (int d = 0; d < 8; d++) acc[h][d][0] = acc[h][d][1] = acc[h][d][2] = acc[h][d][3] = 0;
#pragma unroll
      for (int p = 0; p < 4; p++) {
        if (p < 3) loadValues(p + 1);
        uint4 w = c.weights(p);
#pragma unroll
        for (int h = 0; h < pieces; h++) C::multiplyValues(acc[h], w, vr[p % 2][h]);
      }
#pragma unroll
      for (int half = 0; half < (WIDE ? 2 : 1); half++) {
        float* to = o + (warp * ROWS + r + 8 * half) * HD;
#pragma unroll
        for (int h = 0; h < pieces; h++)
#pragma unroll
          for (int e = 0; e < 2; e++)
#pragma unroll
            for (int d = 0; d < 8; d += 4)
              *(float4*)(to + (2 * q + e) * perRow + h * 8 + d) =
                  make_float4(acc[h][d][2 * half + e], acc[h][d + 1][2 * half + e], acc[h][d + 2][2 * half + e], acc[h][d + 3][2 * half + e]);
        if (q == 0) stats[(warp * ROWS + r + 8 * half) * 2] = c.high[half], stats[(warp * ROWS + r + 8 * half) * 2 + 1] = c.sum[half];
      }
    }
    __syncthreads();
    const int there = min(warps, chunks - round);
    if (split) {
      float* to = a.partial + ((size_t(blockIdx.y) * a.kvHeads + kv) * a.chunksMax + round) * G * (HD + 2);
      for (int i = threadIdx.x; i < there * G * (HD + 2); i += blockDim.x) {
        int w = i / (G * (HD + 2)), g = i / (HD + 2) % G, d = i % (HD + 2);
        __stcg(to + i, d < HD ? o[(w * ROWS + g) * HD + d] : stats[(w * ROWS + g) * 2 + d - HD]);
      }
      break;
    }
    if (threadIdx.x < G) { // the factors of this round, in place of its statistics
      int g = threadIdx.x;
      for (int w = 0; w < there; w++) {
        float* s = stats + (w * ROWS + g) * 2;
        float keep, take;
        mergeFactors(runStats[2 * g], runStats[2 * g + 1], s[0], s[1], keep, take);
        s[0] = keep, s[1] = take;
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < G * HD; i += blockDim.x) {
      float out = run[i];
      for (int w = 0; w < there; w++) out = merged(out, o[w * ROWS * HD + i], stats[(w * ROWS + i / HD) * 2], stats[(w * ROWS + i / HD) * 2 + 1]);
      run[i] = out;
    }
    __syncthreads();
  }
  if (split) {
    const unsigned blocks = (chunks + warps - 1) / warps;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) complete = atomicInc(a.arrived + blockIdx.y * a.kvHeads + kv, blocks - 1) == blocks - 1;
    __syncthreads();
    if (!complete) return;
    __threadfence();
    const float* from = a.partial + (size_t(blockIdx.y) * a.kvHeads + kv) * a.chunksMax * G * (HD + 2);
    for (int i = threadIdx.x; i < G * HD; i += blockDim.x) {
      const float* p = from + i / HD * (HD + 2);
      float high = -INFINITY, sum = 0, out = 0, keep, take;
#pragma unroll 8
      for (int n = 0; n < chunks; n++, p += G * (HD + 2)) {
        float v = __ldcg(p + i % HD), m2 = __ldcg(p + HD), l = __ldcg(p + HD + 1);
        mergeFactors(high, sum, m2, l, keep, take);
        out = merged(out, v, keep, take);
      }
      run[i] = out;
      if (i % HD == 0) runStats[2 * (i / HD) + 1] = sum;
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < G * HD; i += blockDim.x) {
    int head = a.groups[kv * G + i / HD];
    if (head >= 0) ((T*)a.out)[(size_t(m) * a.heads + head) * HD + i % HD] = narrow<T>(run[i] / runStats[2 * (i / HD) + 1]);
  }
}

#define DECODE(type, size)                                                                                                              \
  KERNEL __launch_bounds__(128) decode_##type##_##size(const __grid_constant__ AttentionArguments a) { decode<type, size, false>(a); }  \
  KERNEL __launch_bounds__(128) decode_wide_##type##_##size(const __grid_constant__ AttentionArguments a) { decode<type, size, true>(a); }
DECODE(bf16, 64) DECODE(bf16, 128) DECODE(f16, 64) DECODE(f16, 128)
