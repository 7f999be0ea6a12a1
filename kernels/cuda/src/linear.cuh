// The arguments of the products and what happens to a sum once it is complete.
//
// One order of summation for all products (the law of bits). Columns are cut into
// `segments` segments of `segment` chunks of 32; a segment is a chain of 16-wide
// tensor core products from its first column to its last, starting from zero; the
// segments are added in order. How many segments a weight has depends on its own
// number of columns alone, so a row's result is the same in every kernel here.
#pragma once
#include "common.cuh"

struct LinearArguments {
  const uint4* weight;        // pack.cuh's order, or plain float32 rows
  const void* x;              // rows × stride: float32 or T
  const float* gain;          // of a norm that this kernel applies, or null
  const float* bias;          // or null
  float* scale;               // per row: 1/rms of a norm that was applied before, or null
  void* out;                  // rows × outStride: float32 or T
  float* partial;             // segment × row × width: sums of segments, or null
  unsigned* arrived;          // per tile: segments that are there
  const uint4* const* experts; // per expert: its weight, or null
  const int* pairs;           // expert's rows: index into x, by place in out
  const int* starts;          // per expert: its first place in out; one more than experts
  int rows, width, columns;   // x rows; weight rows; weight columns
  int chunks, segment, segments;
  int xStride, outStride;
  float eps, softcap;
  int activation, gated, accumulate;
  int xNarrow, outNarrow;
  int slots; // gemv: pieces of a warp's ring
  int parts; // of each row's sum of squares, which `scale` holds in place of 1/rms (joint.cuh), or 0
};

// Blocks of 8 weight rows that a unit of output takes: one, or with a gate two.
DEVICE int unitsOf(const LinearArguments& a) { return a.gated ? a.width / 16 : (a.width + 7) / 8; }

// Whether outputs n … n + 3 of a row can be read and written at once.
DEVICE bool fourTogether(const LinearArguments& a, int n) { return n + 4 <= (a.gated ? a.width / 2 : a.width) && a.outStride % 4 == 0; }

// What outputs n … of row m are added to.
template <class T, int N> DEVICE void standing(const LinearArguments& a, int m, int n, float (&old)[N]) {
  const int limit = a.gated ? a.width / 2 : a.width;
  const size_t at = size_t(m) * a.outStride + n;
#pragma unroll
  for (int i = 0; i < N; i++) old[i] = 0;
  if (!a.accumulate) return;
  if (N == 4 && fourTogether(a, n)) {
    if (a.outNarrow) {
      uint2 u = *(const uint2*)((const T*)a.out + at);
      T v[4];
      memcpy(v, &u, 8);
#pragma unroll
      for (int i = 0; i < N; i++) old[i] = widen(v[i]);
    } else {
      float4 u = *(const float4*)((const float*)a.out + at);
      old[0] = u.x, old[1 % N] = u.y, old[2 % N] = u.z, old[3 % N] = u.w;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < N; i++)
    if (n + i < limit) old[i] = a.outNarrow ? widen(((const T*)a.out)[at + i]) : ((const float*)a.out)[at + i];
}

// Each step is rounded by itself, whatever stands around it, so all kernels agree.
DEVICE float scaled(float sum, float scale, float bias) { return __fadd_rn(__fmul_rn(sum, scale), bias); }
// Hopper's copy engine adds in L2 and counts subnormals as zero there; so does this.
DEVICE float added(float old, float v) {
  float sum;
  asm("add.rn.ftz.f32 %0, %1, %2;" : "=f"(sum) : "f"(old), "f"(v));
  return sum;
}
// Stores one output.
template <class T> DEVICE void store(const LinearArguments& a, int m, int n, float v) {
  const size_t at = size_t(m) * a.outStride + n;
  if (a.outNarrow) {
    T* out = (T*)a.out + at;
    *out = narrow<T>(a.accumulate ? added(widen(*out), v) : v);
  } else {
    float* out = (float*)a.out + at;
    *out = a.accumulate ? added(*out, v) : v;
  }
}

// Stores N neighbouring outputs (row m, columns n …) of sums v, and with a gate
// those to multiply by, on top of what stood there.
template <class T, int N> DEVICE void finish(const LinearArguments& a, int m, int n, float scale, const float (&sum)[N], const float (&gate)[N], const float (&old)[N]) {
  const int limit = a.gated ? a.width / 2 : a.width;
  const size_t at = size_t(m) * a.outStride + n;
  float v[N];
#pragma unroll
  for (int i = 0; i < N; i++) {
    v[i] = scaled(sum[i], scale, a.bias && n + i < limit ? a.bias[n + i] : -0.f);
  }
  if (a.softcap > 0)
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = softcapped(a.softcap, v[i]);
  if (a.activation == silu)
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = activate<T>(silu, v[i]);
  else if (a.activation)
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = activate<T>(a.activation, v[i]);
  if (a.gated)
#pragma unroll
    for (int i = 0; i < N; i++) {
      v[i] = __fmul_rn(v[i], scaled(gate[i], scale, a.bias && n + i < limit ? a.bias[n + i + limit] : -0.f));
    }
  if (a.accumulate)
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = added(old[i], v[i]);
  if (N == 4 && fourTogether(a, n)) {
    if (a.outNarrow) *(uint2*)((T*)a.out + at) = make_uint2(pair<T>(v[0], v[1 % N]), pair<T>(v[2 % N], v[3 % N]));
    else *(float4*)((float*)a.out + at) = make_float4(v[0], v[1 % N], v[2 % N], v[3 % N]);
    return;
  }
#pragma unroll
  for (int i = 0; i < N; i++) {
    if (n + i >= limit) break;
    if (a.outNarrow) ((T*)a.out)[at + i] = narrow<T>(v[i]);
    else ((float*)a.out)[at + i] = v[i];
  }
}
template <class T, int N> DEVICE void finish(const LinearArguments& a, int m, int n, float scale, const float (&sum)[N], const float (&gate)[N]) {
  float old[N];
  standing<T, N>(a, m, n, old);
  finish<T, N>(a, m, n, scale, sum, gate, old);
}

// Reads row x and hands on (column, value · gain) in fours; gives this thread's
// part of the sum of squares. 512 threads, one fixed order.
template <class Put> DEVICE float stageWide(const float* x, const float* gain, int columns, int thread, const float4* gains, Put put) {
  float squares = 0;
  auto take = [&](int e, float (&v)[4], const float (&g)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) squares = fmaf(v[i], v[i], squares);
    if (gain) {
#pragma unroll
      for (int i = 0; i < 4; i++) v[i] *= g[i];
    }
    put(e, v[0], v[1], v[2], v[3]);
  };
  if (columns % 4 == 0) {
    constexpr int AHEAD = 2; // loads on their way at once
    for (int base = 4 * thread; base < columns; base += AHEAD * 2048) {
      float v[AHEAD][4], g[AHEAD][4];
#pragma unroll
      for (int k = 0; k < AHEAD; k++) {
        const int e = min(base + k * 2048, columns - 4);
        float4 u = *(const float4*)(x + e), w = !gain ? make_float4(0, 0, 0, 0) : gains && base == 4 * thread ? gains[k] : *(const float4*)(gain + e);
        v[k][0] = u.x, v[k][1] = u.y, v[k][2] = u.z, v[k][3] = u.w;
        g[k][0] = w.x, g[k][1] = w.y, g[k][2] = w.z, g[k][3] = w.w;
      }
#pragma unroll
      for (int k = 0; k < AHEAD; k++)
        if (base + k * 2048 < columns) take(base + k * 2048, v[k], g[k]);
    }
    return squares;
  }
  for (int e = 4 * thread; e < columns; e += 2048) {
    float v[4], g[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = e + i < columns ? x[e + i] : 0.f, g[i] = gain && e + i < columns ? gain[e + i] : 0.f;
    take(e, v, g);
  }
  return squares;
}

// 1/sqrt(mean + eps) of 16 warps' sums of squares.
DEVICE float inverseRoot(const float* squares, int columns, float eps) {
  float sum = 0;
#pragma unroll
  for (int w = 0; w < 16; w++) sum += squares[w];
  return 1.f / sqrtf(sum / columns + eps);
}

// The same of row m of x, of which a.scale holds the sums of squares of 128 columns each.
constexpr int squareParts = 16; // that there is room for
DEVICE float inverseRootOf(const LinearArguments& a, int m) {
  const float* from = a.scale + size_t(m) * squareParts;
  float squares[squareParts];
#pragma unroll
  for (int i = 0; i < squareParts; i++) squares[i] = i < a.parts ? __ldcg(from + i) : 0.f;
  return inverseRoot(squares, a.columns, a.eps);
}
