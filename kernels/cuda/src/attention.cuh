// What the attention kernels share: the batch as the device sees it, storing of
// keys and values, and the arithmetic of one chunk of keys.
//
// The law of bits: a query sees its keys in chunks of 64 at absolute positions. A
// chunk gives highest score m, sum l of exp2(score - m) and o = Σ exp2(score - m)·v
// (Vaswani et al. 2017, §3.2.1); chunks are merged one by one in rising order
// (Milakov & Gimelshein 2018, §3). A chunk that a query may not see changes
// nothing, so neither the number of rows nor of blocks shows in its result.
//
// Cache: layer × block × KV head × 16 slots × head size, K and V apart.
#pragma once
#include "common.cuh"

constexpr int chunkKeys = 64;

// The kernels of 16 bits, each for the head sizes that it is made for.
#define OF_16_BITS(KERNELS) KERNELS(bf16, 64) KERNELS(bf16, 128) KERNELS(f16, 64) KERNELS(f16, 128)

// PromptItem is 128 query rows of a span, from `first` on (prompt.cuh).
struct alignas(16) PromptItem { int span, first, row, count, start; }; // row, count, start: of the span

// DecodeItem is a row that is its sequence's only one (decode.cuh).
struct alignas(16) DecodeItem { int row, position, span, unused; };

struct AttentionArguments {
  const float* qkv;     // rows × (heads + 2 kvHeads) · size
  void* q;              // rows × heads × size, T: rotated queries
  void* out;            // rows × heads · size, T
  void *k, *v;          // this layer's cache
  const int* position;  // per row
  const int* rowSpan;   // per row: its span
  const int* tables;    // per span: its blocks in this group
  const void* items;    // DecodeItems or PromptItems
  const int* groups;    // per KV head: its query heads, -1 at the end of a short list
  const float *qGain, *qBias, *kGain, *kBias; // norms, or null
  const float2* rope;   // (position, pair): cos, sin, or null
  float* partial;       // per item, KV head, chunk: m, l, o of every head of the group
  unsigned* arrived;    // per item, KV head
  long long blockStride; // elements of one block
  int rows, heads, kvHeads, size, stride; // stride: blocks in a row of tables
  int group;            // query heads of a KV head, at most
  int pairs, interleaved, normAcross, qNorm, kNorm;
  int window, chunksMax;
  int stored, stages;    // decode: keys and queries are in place; tiles of the ring (spread: chunks)
  int walks, together;   // walk: items × KV heads; those of them that have a block each
  float qEps, kEps, scale, softcap;
};

// turnHead writes head h of a row (queries, then keys, then values), normalised and
// rotated (Su et al. 2021, eq. 34), to `head` in shared memory. A warp calls it.
DEVICE void turnHead(const AttentionArguments& a, const float* x, int h, int position, int lane, float* head, float mean, float scale) {
  const int size = a.size;
  const bool key = h >= a.heads, value = h >= a.heads + a.kvHeads;
  const int kind = value ? -1 : key ? a.kNorm : a.qNorm;
  const float *gain = key ? a.kGain : a.qGain, *bias = key ? a.kBias : a.qBias, *v = x + size_t(h) * size;
  int from = 0; // where in gain this head begins
  if (kind >= 0 && a.normAcross) {
    from = (key ? h - a.heads : h) * size;
  } else if (kind >= 0) {
    float sum = 0;
    mean = 0;
    if (kind == 1) {
      for (int i = lane; i < size; i += 32) sum += v[i];
      mean = warpSum(sum) / size, sum = 0;
    }
    for (int i = lane; i < size; i += 32) sum += (v[i] - mean) * (v[i] - mean);
    scale = 1.f / sqrtf(warpSum(sum) / size + (key ? a.kEps : a.qEps));
  }
  for (int i = lane; i < size; i += 32) {
    float u = v[i];
    if (kind >= 0) {
      u = (u - mean) * scale;
      if (gain) u *= gain[from + i];
      if (bias) u += bias[from + i];
    }
    head[i] = u;
  }
  __syncwarp();
  if (a.rope && !value) {
    for (int i = lane; i < a.pairs; i += 32) {
      int lo = a.interleaved ? 2 * i : i, hi = a.interleaved ? 2 * i + 1 : i + a.pairs;
      float2 t = a.rope[size_t(position) * a.pairs + i];
      float u = head[lo], w = head[hi];
      head[lo] = __fsub_rn(__fmul_rn(u, t.x), __fmul_rn(w, t.y));
      head[hi] = __fadd_rn(__fmul_rn(w, t.x), __fmul_rn(u, t.y));
    }
    __syncwarp();
  }
}

// store: keys and values of a row into the cache, queries rotated into q.
// One block of threads per row, a warp per head.
template <class T, class C> DEVICE void store(const AttentionArguments& a) {
  chain();
  const int m = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int heads = a.heads + 2 * a.kvHeads, size = a.size;
  const float* x = a.qkv + size_t(m) * heads * size;
  __shared__ float sums[2][2][32];
  float acrossMean[2] = {0, 0}, acrossScale[2] = {1, 1};
  if (a.normAcross) { // over all heads of the row at once
    for (int s = 0; s < 2; s++) {
      int kind = s ? a.kNorm : a.qNorm, count = (s ? a.kvHeads : a.heads) * size;
      const float* v = x + (s ? a.heads * size : 0);
      for (int pass = kind == 1 ? 0 : 1; pass < 2 && kind >= 0; pass++) {
        float sum = 0;
        for (int i = threadIdx.x; i < count; i += blockDim.x) {
          float u = v[i] - acrossMean[s];
          sum += pass ? u * u : v[i];
        }
        sum = warpSum(sum);
        if (lane == 0) sums[s][pass][warp] = sum;
        __syncthreads();
        sum = 0;
        for (int w = 0; w < warps; w++) sum += sums[s][pass][w];
        if (pass) acrossScale[s] = 1.f / sqrtf(sum / count + (s ? a.kEps : a.qEps));
        else acrossMean[s] = sum / count;
        __syncthreads();
      }
    }
  }
  const int position = a.position[m], span = a.rowSpan[m];
  const int block = a.tables[span * a.stride + position / blockTokens];
  extern __shared__ float heap[];
  float* head = heap + warp * size;
  for (int h = warp; h < heads; h += warps) {
    const bool key = h >= a.heads, value = h >= a.heads + a.kvHeads;
    turnHead(a, x, h, position, lane, head, acrossMean[key], acrossScale[key]);
    if (!key) {
      T* q = (T*)a.q + (size_t(m) * a.heads + h) * size;
      for (int i = lane; i < size; i += 32) q[i] = narrow<T>(head[i]);
    } else if (block >= 0) {
      int kv = value ? h - a.heads - a.kvHeads : h - a.heads;
      C* c = (C*)(value ? a.v : a.k) + block * a.blockStride + (size_t(kv) * blockTokens + position % blockTokens) * size;
      for (int i = lane; i < size; i += 32) c[i] = narrow<C>(head[i]);
    }
    __syncwarp();
  }
}

// 2^x to about one unit in the 22nd place; 2^-inf is 0.
DEVICE float power(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Merges a chunk (m, l, o) into what came before (high, sum, out).
DEVICE void mergeFactors(float& high, float& sum, float m, float l, float& keep, float& take) {
  if (m == -INFINITY) {
    keep = 1, take = 0;
    return;
  }
  float to = fmaxf(high, m);
  keep = power(high - to), take = power(m - to);
  high = to;
  sum = __fmaf_rn(l, take, __fmul_rn(sum, keep));
}
// What all kernels but plain multiply their outputs with at the end: a division of each
// of them would be ten operations and a branch.
DEVICE float inverse(float sum) { return __frcp_rn(sum); }
DEVICE float merged(float out, float o, float keep, float take) { return __fmaf_rn(o, take, __fmul_rn(out, keep)); }

// A raw product of query and key as a power of two's exponent. Without a cap the
// kernels that keep a chunk's products in registers leave the factor to the
// exponents: 2^(s·c - m·c) is one operation.
constexpr float log2e = 1.44269504088896341f;
DEVICE float capped(float s, float scale, float softcap) { return __fmul_rn(softcap * log2e, tanhf(__fdividef(__fmul_rn(s, scale), softcap))); }
DEVICE float score(float s, float scale, float softcap) { return softcap > 0 ? capped(s, scale, softcap) : __fmul_rn(s, scale * log2e); }

// plain: any head size and type, one warp a (row, head). Slow and simple.
// Memory bound: the keys and values of each row once per query head.
template <class T, class C> DEVICE void attendPlain(const AttentionArguments& a) {
  chain();
  extern __shared__ float heap[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, size = a.size;
  const int m = blockIdx.x, h = blockIdx.y * (blockDim.x / 32) + warp;
  float *q = heap + warp * (2 * size + chunkKeys), *out = q + size, *p = out + size;
  if (h >= a.heads) return;
  int kv = 0;
  for (int i = 0; i < a.kvHeads * a.group; i++)
    if (a.groups[i] == h) kv = i / a.group;
  for (int i = lane; i < size; i += 32) q[i] = widen(((const T*)a.q)[(size_t(m) * a.heads + h) * size + i]), out[i] = 0;
  __syncwarp();
  const int position = a.position[m], first = a.window > 0 ? max(0, position - a.window + 1) : 0;
  const int* table = a.tables + a.rowSpan[m] * a.stride;
  float high = -INFINITY, sum = 0;
  for (int chunk = first / chunkKeys; chunk * chunkKeys <= position; chunk++) {
    float s[2], m2 = -INFINITY;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      int at = chunk * chunkKeys + lane + 32 * j;
      s[j] = -INFINITY;
      if (at >= first && at <= position) {
        const C* k = (const C*)a.k + table[at / blockTokens] * a.blockStride + (size_t(kv) * blockTokens + at % blockTokens) * size;
        float dot = 0;
        for (int i = 0; i < size; i++) dot = fmaf(q[i], widen(k[i]), dot);
        s[j] = score(dot, a.scale, a.softcap);
      }
      m2 = fmaxf(m2, s[j]);
    }
    m2 = warpMax(m2);
    float l = 0;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      float e = s[j] == -INFINITY ? 0.f : power(s[j] - m2);
      p[lane + 32 * j] = e, l += e;
    }
    l = warpSum(l);
    float keep, take;
    mergeFactors(high, sum, m2, l, keep, take);
    __syncwarp();
    int lo = max(first, chunk * chunkKeys), hi = min(position, chunk * chunkKeys + chunkKeys - 1);
    for (int i = lane; i < size; i += 32) {
      float o = 0;
      for (int at = lo; at <= hi; at++) {
        const C* v = (const C*)a.v + table[at / blockTokens] * a.blockStride + (size_t(kv) * blockTokens + at % blockTokens) * size;
        o = fmaf(p[at - chunk * chunkKeys], widen(v[i]), o);
      }
      out[i] = merged(out[i], o, keep, take);
    }
    __syncwarp();
  }
  for (int i = lane; i < size; i += 32) ((T*)a.out)[(size_t(m) * a.heads + h) * size + i] = narrow<T>(out[i] / sum);
}

#define PLAIN_ATTENTION(type, cache)                                                                                             \
  KERNEL __launch_bounds__(256) store_##type##_##cache(const __grid_constant__ AttentionArguments a) { store<type, cache>(a); }   \
  KERNEL __launch_bounds__(128) attend_##type##_##cache(const __grid_constant__ AttentionArguments a) { attendPlain<type, cache>(a); }
PLAIN_ATTENTION(bf16, bf16) PLAIN_ATTENTION(bf16, f16) PLAIN_ATTENTION(bf16, float)
PLAIN_ATTENTION(f16, bf16) PLAIN_ATTENTION(f16, f16) PLAIN_ATTENTION(f16, float)
PLAIN_ATTENTION(float, bf16) PLAIN_ATTENTION(float, f16) PLAIN_ATTENTION(float, float)
