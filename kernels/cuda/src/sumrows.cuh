// A sum over ranks that goes on as `prepare` would: each row is added to the residual and
// normalised where it was summed, and the product that reads it is let in meanwhile.
// Bits are those of sumOnce or sumTwice and prepare (norm.cuh). One block takes a row
// after the other; in two shots row m is rank m % ranks' to sum.
#pragma once
#include "norm.cuh"
#include "reduce.cuh"

struct SumRowsArguments : ReduceArguments {
  const float* gain;
  void* prepared; // T, rows × outStride
  float* scale;   // 1/rms of each row
  int rows, columns, preparedStride;
  float eps;
};
static_assert(reduceThreads == normThreads, "a thread's columns are those that it has in prepare");

template <class T, bool TWICE> DEVICE void sumRows(const SumRowsArguments& a) {
  if (a.early) release();
  dependency();
  __shared__ float squares[16];
  const Quads quads{size_t(a.columns / 4), threadIdx.x, reduceThreads};
  float* y = a.part[a.rank];
  auto each = [&](auto f) {
    for (int row = blockIdx.x; row < a.rows; row += gridDim.x) quads.groups([&](size_t first) { f(row, size_t(row) * a.columns, first); });
  };
  auto place = [&](int row) { return size_t(TWICE ? row / a.ranks : row) * a.columns; }; // in a slot
  each([&](int row, size_t at, size_t first) {
    if (TWICE && row % a.ranks == a.rank) return;
    float4 v[quadsAhead];
    quads.each(first, [&](int i, size_t q) { v[i] = sendable(loadQuad(y + at + 4 * q)); });
    for (int k = 1; k < a.ranks; k++) {
      const int peer = a.peer(k);
      if (TWICE && row % a.ranks != peer) continue;
      float* slot = a.at(peer, a.rank) + place(row);
      quads.each(first, [&](int i, size_t q) { storeQuad(slot + 4 * q, v[i]); });
    }
  });
  Wait wait{a, a.number()};
  auto add = [&](int row, size_t at, size_t first, float4 (&sum)[quadsAhead]) { // all ranks' parts
    float4 mine[quadsAhead], v[quadsAhead];
    quads.each(first, [&](int i, size_t q) { mine[i] = loadQuad(y + at + 4 * q); });
    for (int r = 0; r < a.ranks; r++) {
      if (r != a.rank) take(quads, first, a.at(a.rank, r) + place(row), v, wait, r);
      quads.each(first, [&](int i, size_t) {
        const float4 next = r == a.rank ? mine[i] : v[i];
        sum[i] = r ? addQuads(sum[i], next) : next;
      });
    }
    quads.each(first, [&](int i, size_t q) { *(float4*)(y + at + 4 * q) = sum[i]; });
  };
  if (TWICE)
    each([&](int row, size_t at, size_t first) {
      if (row % a.ranks != a.rank) return;
      float4 sum[quadsAhead];
      add(row, at, first, sum);
      for (int k = 1; k < a.ranks; k++) {
        float* slot = a.at(a.peer(k), a.ranks + a.rank) + place(row);
        quads.each(first, [&](int i, size_t q) { storeQuad(slot + 4 * q, sum[i]); });
      }
    });
  for (int row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const size_t at = size_t(row) * a.columns;
    T* out = (T*)a.prepared + size_t(row) * a.preparedStride;
    float part = 0;
    quads.groups([&](size_t first) {
      float4 x[quadsAhead], sum[quadsAhead], gain[quadsAhead];
      quads.each(first, [&](int i, size_t q) { x[i] = *(const float4*)(a.x + at + 4 * q), gain[i] = *(const float4*)(a.gain + 4 * q); });
      const int owner = row % a.ranks;
      if (!TWICE) {
        add(row, at, first, sum);
      } else if (owner == a.rank) {
        quads.each(first, [&](int i, size_t q) { sum[i] = loadQuad(y + at + 4 * q); });
      } else {
        take(quads, first, a.at(a.rank, a.ranks + owner) + place(row), sum, wait, owner);
        quads.each(first, [&](int i, size_t q) { *(float4*)(y + at + 4 * q) = sum[i]; });
      }
      quads.each(first, [&](int i, size_t q) {
        const float4 v = addQuads(x[i], sum[i]);
        *(float4*)(a.x + at + 4 * q) = v;
        part = fmaf(v.x, v.x, part), part = fmaf(v.y, v.y, part), part = fmaf(v.z, v.z, part), part = fmaf(v.w, v.w, part);
        *(uint2*)(out + 4 * q) = make_uint2(pair<T>(v.x * gain[i].x, v.y * gain[i].y), pair<T>(v.z * gain[i].z, v.w * gain[i].w));
      });
    });
    for (int i = a.columns + threadIdx.x; i < a.preparedStride; i += reduceThreads) out[i] = narrow<T>(0.f);
    part = warpSum(part);
    if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32] = part;
    __syncthreads();
    if (threadIdx.x == 0) a.scale[row] = inverseRoot(squares, a.columns, a.eps);
    __syncthreads();
  }
  if (!a.early) release();
}
KERNEL __launch_bounds__(reduceThreads) sumRowsOnce(const __grid_constant__ SumRowsArguments a) { sumRows<bf16, false>(a); }
KERNEL __launch_bounds__(reduceThreads) sumRowsTwice(const __grid_constant__ SumRowsArguments a) { sumRows<bf16, true>(a); }
