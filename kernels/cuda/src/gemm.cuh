// gemm: out[m,n] = finish(Σ_k x[m,k] · weight[n,k]) for many rows.
//
// x: (rows, stride ≥ columns padded to 64) T, normalised beforehand (norm.cuh's
// prepare). weight: (width, columns) T in pack.cuh's order. Sums are fp32 in the
// order of linear.cuh: bit for bit what gemv gives.
// Grid: weight tiles × row tiles × segments (or experts). A block multiplies a
// tile of TN weight rows and TM rows, 64 columns at a time, through STAGES stages
// of shared memory; with segments in the grid the last block of a tile to arrive
// adds their sums. With experts, rows are gathered by `pairs`.
// Bound: 2·rows·width·columns operations, or 2·width·columns bytes. Reference: ref.Linear.
#pragma once
#include "linear.cuh"

template <class T, int TN, int TM, int WN, int WM, int STAGES> struct Tile {
  static constexpr int threads = WN * WM * 32, weightBytes = TN * 128, xBytes = TM * 128;
  static constexpr int stageBytes = weightBytes + xBytes, bytes = STAGES * stageBytes;
  static constexpr int NB = TN / 8 / WN, MT = TM / 16 / WM; // blocks and row tiles of a warp

  static DEVICE void run(const LinearArguments& a) {
    extern __shared__ __align__(128) char memory[];
    __shared__ bool complete;
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, r = lane / 4, q = lane % 4;
    const int wn = warp / WM, wm = warp % WM, units = unitsOf(a), blocks = a.gated ? 2 * units : units;
    const int tile = blockIdx.x;
    const bool split = a.partial != nullptr;
    const int segment0 = split ? blockIdx.z : 0, segments = split ? segment0 + 1 : a.segments;
    const int stage0 = segment0 * a.segment / 2, stageEnd = min(segments * a.segment / 2, a.chunks / 2);
    const uint4* weight = a.weight;
    int rows = a.rows, place = 0; // rows of this expert, and where its outputs begin
    const uint64_t policy = streamingPolicy();
    const uint32_t base = shared(memory);
    if (a.experts) {
      weight = a.experts[blockIdx.z];
      chain();
      place = a.starts[blockIdx.z];
      rows = a.starts[blockIdx.z + 1] - place;
    }
    const int m0 = blockIdx.y * TM;
    if (m0 >= rows) {
      if (!a.experts) chain();
      return;
    }
    auto blockOf = [&](int j) { // the weight block that stands j-th in the tile
      int u = tile * (a.gated ? TN / 16 : TN / 8) + (a.gated ? j / 2 : j);
      return u < units ? u + (a.gated ? j % 2 * units : 0) : -1;
    };
    auto fetchWeight = [&](int stage, int slot) {
#pragma unroll
      for (int i = thread; i < TN * 8; i += threads) {
        int j = i / 64, b = blockOf(j);
        const uint4* src = weight + (size_t(max(b, 0)) * a.chunks + stage * 2) * 32 + i % 64;
        uint32_t dst = base + slot * stageBytes + i * 16;
        if (b >= 0) copyAsyncOnce(dst, src, policy);
        else copyAsync(dst, src, 0);
      }
    };
    auto fetchX = [&](int stage, int slot) {
#pragma unroll
      for (int i = thread; i < TM * 8; i += threads) {
        int m = i / 8, piece = i % 8, at = min(m0 + m, rows - 1);
        int row = a.pairs ? a.pairs[place + at] : place + at;
        const char* src = (const char*)a.x + (size_t(row) * a.xStride + stage * 64) * 2 + piece * 16;
        copyAsync(base + slot * stageBytes + weightBytes + m * 128 + ((piece ^ (m & 7)) << 4), src, m0 + m < rows ? 16 : 0);
      }
    };
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++)
      if (stage0 + s < stageEnd) fetchWeight(stage0 + s, s);
    if (!a.experts) chain();
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
      if (stage0 + s < stageEnd) fetchX(stage0 + s, s);
      commitCopies();
    }
    float sum[MT][NB][4], total[MT][NB][4];
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int j = 0; j < NB; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) sum[i][j][e] = 0;
    bool begun = false;
    int left = a.segment / 2; // stages to the end of the segment
    for (int stage = stage0, slot = 0; stage < stageEnd; stage++) {
      waitCopies<STAGES - 2>();
      __syncthreads();
      int ahead = stage + STAGES - 1, into = slot == 0 ? STAGES - 1 : slot - 1;
      if (ahead < stageEnd) fetchWeight(ahead, into), fetchX(ahead, into);
      commitCopies();
      const uint32_t w = base + slot * stageBytes, x = w + weightBytes;
#pragma unroll
      for (int c = 0; c < 2; c++) {
        uint4 b[NB];
#pragma unroll
        for (int j = 0; j < NB; j++) b[j] = loadShared(w + ((wn * NB + j) * 2 + c) * chunkBytes + lane * 16);
#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
          for (int i = 0; i < MT; i++) {
            int m = (wm * MT + i) * 16 + lane % 16, piece = c * 4 + h * 2 + lane / 16;
            uint4 v = loadMatrix(x + m * 128 + ((piece ^ (m & 7)) << 4));
#pragma unroll
            for (int j = 0; j < NB; j++) multiply<T>(sum[i][j], v, h ? b[j].z : b[j].x, h ? b[j].w : b[j].y);
          }
        }
      }
      if (--left == 0 || stage + 1 == stageEnd) {
        left = a.segment / 2;
#pragma unroll
        for (int i = 0; i < MT; i++)
#pragma unroll
          for (int j = 0; j < NB; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) total[i][j][e] = begun ? total[i][j][e] + sum[i][j][e] : sum[i][j][e], sum[i][j][e] = 0;
        begun = true;
      }
      if (++slot == STAGES) slot = 0;
    }
    if (split) {
      const size_t plane = size_t(a.rows) * blocks * 8;
      each([&](int i, int j, int m, int b, int n, int e) { __stcg(a.partial + segment0 * plane + (size_t(m) * blocks + b) * 8 + n, total[i][j][e]); },
           m0, rows, wm, wn, r, q, blockOf);
      __threadfence();
      __syncthreads();
      if (thread == 0) complete = atomicInc(a.arrived + blockIdx.y * gridDim.x + tile, gridDim.z - 1) == gridDim.z - 1;
      __syncthreads();
      if (!complete) return;
      __threadfence();
      each([&](int i, int j, int m, int b, int n, int e) {
        const float* p = a.partial + (size_t(m) * blocks + b) * 8 + n;
        float v = __ldcg(p);
        for (int s = 1; s < a.segments; s++) v += __ldcg(p + s * plane);
        total[i][j][e] = v;
      }, m0, rows, wm, wn, r, q, blockOf);
    }
    each([&](int i, int j, int m, int b, int n, int e) {
      float scale = a.scale ? a.scale[m] : 1.f;
      if (!a.gated) finish<T>(a, place + m, b * 8 + n, scale, total[i][j][e], 0.f);
      else if (j % 2 == 0 && j + 1 < NB) finish<T>(a, place + m, b * 8 + n, scale, total[i][j][e], total[i][(j + 1) % NB][e]);
    }, m0, rows, wm, wn, r, q, blockOf);
  }

  // Calls f for each output that this thread holds: its place in the registers, row, weight block, row of the block.
  template <class F, class B> static DEVICE void each(F f, int m0, int rows, int wm, int wn, int r, int q, B blockOf) {
#pragma unroll
    for (int j = 0; j < NB; j++) {
      int b = blockOf(wn * NB + j);
#pragma unroll
      for (int i = 0; i < MT; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          int m = m0 + (wm * MT + i) * 16 + r + e / 2 * 8;
          if (b >= 0 && m < rows) f(i, j, m, b, 2 * q + e % 2, e);
        }
    }
  }
};

#define GEMM(type, name, TN, TM, WN, WM, STAGES)                                                            \
  KERNEL __launch_bounds__(WN * WM * 32) gemm_##type##_##name(const __grid_constant__ LinearArguments a) {  \
    Tile<type, TN, TM, WN, WM, STAGES>::run(a);                                                             \
  }
#define GEMMS(type)                   \
  GEMM(type, 16, 128, 16, 8, 1, 6)    \
  GEMM(type, 32, 128, 32, 8, 1, 5)    \
  GEMM(type, 64, 128, 64, 4, 2, 4)    \
  GEMM(type, 128, 128, 128, 2, 4, 4)
GEMMS(bf16) GEMMS(f16)
