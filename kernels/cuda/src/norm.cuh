// Normalisation on its own: prepare makes the input of a product, norm and add
// are operations of kernels.Ops.
//
//	rms:   y[m,i] = x[m,i] · w[i] / sqrt(mean_i(x²) + eps)      Zhang & Sennrich 2019, eq. 4
//	layer: y[m,i] = (x[m,i] - mean) / sqrt(var + eps) · w[i] + b[i]   Ba, Kiros & Hinton 2016, eq. 4
//
// x: (rows, columns) float32 or T. w, b: (columns) float32. Sums are fp32.
// Grid: one block of 512 threads per row. Memory bound: rows·columns·(4 + 2)
// bytes. Reference: ref.Norm, ref.Add.
#pragma once
#include "linear.cuh"

enum NormKind { noNorm = -1, rmsNorm = 0, layerNorm = 1 };

struct NormArguments {
  const void* x;
  const float *gain, *bias;
  void* out;    // prepare: T with outStride columns, the rest zero. norm, add: float32
  float* scale; // prepare with postponed: 1/rms of each row; else 1
  int rows, columns, xStride, outStride;
  int kind, xNarrow, postponed, early; // early: the next kernel is let in before x is there
  float eps;
};

constexpr int normThreads = 512;

DEVICE float blockSum(float v, float* shared16) {
  v = warpSum(v);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared16[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int w = 0; w < 16; w++) sum += shared16[w];
  return sum;
}

template <class T> DEVICE float at(const void* x, int narrow, size_t i) { return narrow ? widen(((const T*)x)[i]) : ((const float*)x)[i]; }

// Calls put(column, value) for every column of this block's row, normalised.
template <class T, class Put> DEVICE void normalise(const NormArguments& a, Put put) {
  __shared__ float partial[16];
  const size_t row = size_t(blockIdx.x) * a.xStride;
  float mean = 0, scale = 1;
  if (a.kind == layerNorm) {
    float sum = 0;
    for (int i = threadIdx.x; i < a.columns; i += normThreads) sum += at<T>(a.x, a.xNarrow, row + i);
    mean = blockSum(sum, partial) / a.columns;
  }
  if (a.kind != noNorm) {
    float squares = 0;
    if (a.kind == rmsNorm && !a.xNarrow)
      squares = stageWide((const float*)a.x + row, nullptr, a.columns, threadIdx.x, nullptr, [](int, float, float, float, float) {});
    else
      for (int i = threadIdx.x; i < a.columns; i += normThreads) {
        float v = at<T>(a.x, a.xNarrow, row + i) - mean;
        squares = fmaf(v, v, squares);
      }
    squares = warpSum(squares);
    __syncthreads();
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = squares;
    __syncthreads();
    scale = inverseRoot(partial, a.columns, a.eps);
  }
  if (a.scale && threadIdx.x == 0) a.scale[blockIdx.x] = a.postponed ? scale : 1.f;
  if (a.postponed) scale = 1;
  for (int i = threadIdx.x; i < a.columns; i += normThreads) {
    float v = (at<T>(a.x, a.xNarrow, row + i) - mean) * scale;
    if (a.gain) v *= a.gain[i];
    if (a.bias) v += a.bias[i];
    put(i, v);
  }
}

template <class T> DEVICE void prepare(const NormArguments& a) {
  if (a.early) chainEarly();
  else chain();
  T* out = (T*)a.out + size_t(blockIdx.x) * a.outStride;
  if (sizeof(T) == 2 && a.postponed && a.columns % 4 == 0) { // one pass: the root is not needed to go on
    __shared__ float squares[16];
    float sum = stageWide((const float*)a.x + size_t(blockIdx.x) * a.xStride, a.gain, a.columns, threadIdx.x, nullptr,
                          [&](int i, float v0, float v1, float v2, float v3) { *(uint2*)(out + i) = make_uint2(pair<T>(v0, v1), pair<T>(v2, v3)); });
    for (int i = a.columns + threadIdx.x; i < a.outStride; i += normThreads) out[i] = narrow<T>(0.f);
    sum = warpSum(sum);
    if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) a.scale[blockIdx.x] = inverseRoot(squares, a.columns, a.eps);
    return;
  }
  normalise<T>(a, [&](int i, float v) { out[i] = narrow<T>(v); });
  for (int i = a.columns + threadIdx.x; i < a.outStride; i += normThreads) out[i] = narrow<T>(0.f);
}
template <class T> DEVICE void norm(const NormArguments& a) {
  chain();
  float* out = (float*)a.out + size_t(blockIdx.x) * a.outStride;
  normalise<T>(a, [&](int i, float v) { out[i] = v; });
}
template <class T> DEVICE void addNorm(const NormArguments& a) {
  chain();
  float* out = (float*)a.out + size_t(blockIdx.x) * a.outStride;
  normalise<T>(a, [&](int i, float v) { out[i] += v; });
}

#define NORMS(type)                                                                                                    \
  KERNEL __launch_bounds__(normThreads) prepare_##type(const __grid_constant__ NormArguments a) { prepare<type>(a); }   \
  KERNEL __launch_bounds__(normThreads) norm_##type(const __grid_constant__ NormArguments a) { norm<type>(a); }         \
  KERNEL __launch_bounds__(normThreads) add_##type(const __grid_constant__ NormArguments a) { addNorm<type>(a); }
NORMS(bf16) NORMS(f16) NORMS(float)
