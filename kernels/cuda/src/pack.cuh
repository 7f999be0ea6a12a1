// pack: rows of a weight as a file stores them into the order that products read.
//
// A block is 8 rows; a chunk of a block is 32 columns, 512 bytes: four matrices of
// 8 rows × 8 columns, row after row. That is how ldmatrix and wgmma (without swizzle)
// read a factor. Eight blocks are a group. Of a group 64 columns lie together, two
// chunks of each block, and then the next 64: what a tile of many rows reads at a time
// are two pieces of 8 KB, a bulk copy each. Boxes of the copy engine in lines of 1 KB take
// longer, where few rows leave memory as the bound, and 16 copies of 1 KB much longer.
// Blocks of a gate's two factors take turns: block 2u is the first one's u-th, 2u + 1
// the second one's.
// Rows and columns past the end are zero. Columns are padded to 64, rows to 64.
// Grid: one block of threads per weight block. Run once per weight.
#pragma once
#include "common.cuh"

struct PackArguments {
  const void* source; // rows × stride bytes
  void* out;
  long long stride;
  int rows, row0, columns, chunks; // rows of the source; where they begin in out
  int type;                        // kernels.DType: F32, F16 or BF16
  int half;                        // rows of a gate's factor, or 0
};

// Where column i of row n is.
DEVICE size_t packedAt(int chunks, int n, int i) { return (chunkAt(chunks, n / 8, i / 32) + i % 32 / 8 * 8 + n % 8) * 8 + i % 8; }

template <class T> DEVICE void pack(const PackArguments& a) {
  int n = a.row0 + blockIdx.x; // one block of threads a row
  if (a.half) n = (n % a.half / 8 * 2 + n / a.half) * 8 + n % a.half % 8;
  const char* row = (const char*)a.source + blockIdx.x * a.stride;
  for (int i = threadIdx.x; i < a.chunks * 32; i += blockDim.x) {
    float v = 0;
    if (i < a.columns) v = a.type == 0 ? ((const float*)row)[i] : a.type == 1 ? widen(((const f16*)row)[i]) : widen(((const bf16*)row)[i]);
    if (sizeof(T) == 4) {
      if (i < a.columns) ((float*)a.out)[size_t(n) * a.columns + i] = v;
      continue;
    }
    ((T*)a.out)[packedAt(a.chunks, n, i)] = narrow<T>(v);
  }
}
KERNEL pack_bf16(const __grid_constant__ PackArguments a) { pack<bf16>(a); }
KERNEL pack_f16(const __grid_constant__ PackArguments a) { pack<f16>(a); }
KERNEL pack_float(const __grid_constant__ PackArguments a) { pack<float>(a); }

struct FillArguments {
  void* out;
  size_t count;
  unsigned seed;
  float scale;
};
// fill: uniform numbers in ±scale, for measuring with weights that no file holds.
template <class T> DEVICE void fill(const FillArguments& a) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < a.count; i += size_t(gridDim.x) * blockDim.x) {
    uint32_t x = uint32_t(i) * 2654435761u ^ uint32_t(i >> 32) * 40503u ^ a.seed * 0x9e3779b9u;
    x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16;
    ((T*)a.out)[i] = narrow<T>(a.scale * (x * 4.656612873e-10f - 1.f));
  }
}
KERNEL fill_bf16(const __grid_constant__ FillArguments a) { fill<bf16>(a); }
KERNEL fill_f16(const __grid_constant__ FillArguments a) { fill<f16>(a); }
KERNEL fill_float(const __grid_constant__ FillArguments a) { fill<float>(a); }

// readAll: the plain read stream that other figures are measured against.
struct ReadArguments {
  const uint4* in;
  size_t count;
  unsigned* out;
};
KERNEL readAll(const __grid_constant__ ReadArguments a) {
  unsigned sum = 0;
  size_t step = size_t(gridDim.x) * blockDim.x, i = blockIdx.x * size_t(blockDim.x) + threadIdx.x;
  for (; i + 3 * step < a.count; i += 4 * step) {
    uint4 v[4];
#pragma unroll
    for (int k = 0; k < 4; k++) v[k] = __ldcs(a.in + i + k * step);
#pragma unroll
    for (int k = 0; k < 4; k++) sum ^= v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
  }
  if (sum == 0x12345) *a.out = sum;
}
