// The products of the float32 mode, for exactness against references.
//
//	out[m,n] = finish(Σ_k x[m,k] · weight[n,k])
//
// x: (rows, columns) float32, normalised. weight: (width, columns) float32 rows.
// A warp computes 8 rows × 1 column; lanes take columns k, k + 32, …, then one
// butterfly: the same order whatever the number of rows. With a gate the warp
// computes both sums. Grid: width / 8 × rows / 8. Reference: ref.Linear.
#pragma once
#include "linear.cuh"

KERNEL __launch_bounds__(256) linear_float(const __grid_constant__ LinearArguments a) {
  chain();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, limit = a.gated ? a.width / 2 : a.width;
  const int n = blockIdx.x * 8 + warp;
  const float* weight = (const float*)a.weight;
  int rows = a.rows, place = 0;
  if (a.experts) {
    weight = (const float*)a.experts[blockIdx.z];
    place = a.starts[blockIdx.z];
    rows = a.starts[blockIdx.z + 1] - place;
  }
  const int m0 = blockIdx.y * 8;
  if (n >= limit || m0 >= rows) return;
  float sum[2][8];
#pragma unroll
  for (int h = 0; h < 2; h++)
#pragma unroll
    for (int i = 0; i < 8; i++) sum[h][i] = 0;
  const float* x[8];
#pragma unroll
  for (int i = 0; i < 8; i++) {
    int at = place + min(m0 + i, rows - 1);
    x[i] = (const float*)a.x + size_t(a.pairs ? a.pairs[at] : at) * a.xStride;
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    if (h == 1 && !a.gated) break;
    const float* w = weight + (size_t(n) + size_t(h) * limit) * a.columns;
    for (int k = lane; k < a.columns; k += 32) {
      float v = w[k];
#pragma unroll
      for (int i = 0; i < 8; i++) sum[h][i] = fmaf(x[i][k], v, sum[h][i]);
    }
  }
  float own = 0, up = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    float v = warpSum(sum[0][i]), u = warpSum(sum[1][i]);
    if (lane == i) own = v, up = u;
  }
  if (lane < 8 && m0 + lane < rows) finish<float, 1>(a, place + m0 + lane, n, 1.f, {own}, {up});
}

// gate: out[m,n] = act(softcap(y[m,n])) · y[m,n+half], where the product could not
// do it itself (half is no multiple of 8).
struct GateArguments {
  const float* y;
  void* out;
  int half, outStride, activation, accumulate, outNarrow;
  float softcap;
};
template <class T> DEVICE void gate(const GateArguments& a) {
  chain();
  const float* y = a.y + size_t(blockIdx.x) * 2 * a.half;
  for (int i = threadIdx.x; i < a.half; i += blockDim.x) {
    float v = activate<T>(a.activation, softcapped(a.softcap, y[i])) * y[i + a.half];
    size_t to = size_t(blockIdx.x) * a.outStride + i;
    if (a.outNarrow) ((T*)a.out)[to] = narrow<T>(v + (a.accumulate ? widen(((T*)a.out)[to]) : 0.f));
    else ((float*)a.out)[to] = v + (a.accumulate ? ((float*)a.out)[to] : 0.f);
  }
}
KERNEL gate_bf16(const __grid_constant__ GateArguments a) { gate<bf16>(a); }
KERNEL gate_f16(const __grid_constant__ GateArguments a) { gate<f16>(a); }
