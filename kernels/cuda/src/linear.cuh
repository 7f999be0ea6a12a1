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
};

// Blocks of 8 weight rows that a unit of output takes: one, or with a gate two.
DEVICE int unitsOf(const LinearArguments& a) { return a.gated ? a.width / 16 : (a.width + 7) / 8; }

// Stores N neighbouring outputs (row m, columns n …) of sums v, and with a gate
// those to multiply by.
template <class T, int N> DEVICE void finish(const LinearArguments& a, int m, int n, float scale, const float (&sum)[N], const float (&gate)[N]) {
  const int limit = a.gated ? a.width / 2 : a.width;
  const size_t at = size_t(m) * a.outStride + n;
  float v[N];
#pragma unroll
  for (int i = 0; i < N; i++) {
    v[i] = sum[i] * scale;
    if (a.bias && n + i < limit) v[i] += a.bias[n + i];
  }
  if (a.softcap > 0)
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = softcapped(a.softcap, v[i]);
  if (a.activation == silu)
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = activate(silu, v[i]);
  else if (a.activation)
#pragma unroll 1
    for (int i = 0; i < N; i++) v[i] = activate(a.activation, v[i]);
  if (a.gated)
#pragma unroll
    for (int i = 0; i < N; i++) {
      float up = gate[i] * scale;
      if (a.bias && n + i < limit) up += a.bias[n + i + limit];
      v[i] *= up;
    }
  if (N == 4 && n + N <= limit && a.outStride % 4 == 0) {
    if (a.outNarrow) {
      uint2* out = (uint2*)((T*)a.out + at);
      if (a.accumulate) {
        T old[4];
        memcpy(old, out, 8);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] += widen(old[i]);
      }
      *out = make_uint2(pair<T>(v[0], v[1 % N]), pair<T>(v[2 % N], v[3 % N]));
    } else {
      float4* out = (float4*)((float*)a.out + at);
      if (a.accumulate) {
        float4 old = *out;
        v[0] += old.x, v[1 % N] += old.y, v[2 % N] += old.z, v[3 % N] += old.w;
      }
      *out = make_float4(v[0], v[1 % N], v[2 % N], v[3 % N]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < N; i++) {
    if (n + i >= limit) break;
    if (a.outNarrow) {
      T* out = (T*)a.out + at + i;
      *out = narrow<T>(a.accumulate ? v[i] + widen(*out) : v[i]);
    } else {
      float* out = (float*)a.out + at + i;
      *out = a.accumulate ? v[i] + *out : v[i];
    }
  }
}

// Reads row x and hands on (column, value · gain) in fours; gives this thread's
// part of the sum of squares. 512 threads, one fixed order.
template <class Put> DEVICE float stageWide(const float* x, const float* gain, int columns, int thread, Put put) {
  float squares = 0;
  for (int e = 4 * thread; e < columns; e += 2048) {
    float v[4] = {0, 0, 0, 0};
    if (columns % 4 == 0) {
      float4 u = *(const float4*)(x + e);
      v[0] = u.x, v[1] = u.y, v[2] = u.z, v[3] = u.w;
    } else {
      for (int i = 0; i < 4 && e + i < columns; i++) v[i] = x[e + i];
    }
#pragma unroll
    for (int i = 0; i < 4; i++) squares = fmaf(v[i], v[i], squares);
    if (gain) {
#pragma unroll
      for (int i = 0; i < 4; i++) v[i] *= e + i < columns ? gain[e + i] : 0.f;
    }
    put(e, v[0], v[1], v[2], v[3]);
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
