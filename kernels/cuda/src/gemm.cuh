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

// finishTile takes a block's tile of sums in shared memory (row × pitch) to the
// output. Where the grid has segments the tile goes to memory, and the last block
// to arrive adds all of them, in order, and finishes.
template <class T, int TN, int TM, int THREADS, int PITCH>
DEVICE void finishTile(const LinearArguments& a, float* tileSums, int tile, int counter, int m0, int rows, int place, int segment0) {
  __shared__ bool complete;
  const int thread = threadIdx.x, units = unitsOf(a), blocks = a.gated ? 2 * units : units;
  auto blockOf = [&](int j) {
    int u = tile * (a.gated ? TN / 16 : TN / 8) + (a.gated ? j / 2 : j);
    return u < units ? u + (a.gated ? j % 2 * units : 0) : -1;
  };
  __syncthreads();
  if (a.partial) {
    const size_t plane = size_t(a.rows) * blocks * 8;
#pragma unroll 4
    for (int i = thread; i < TM * TN / 4; i += THREADS) {
      int m = i / (TN / 4), n = i % (TN / 4) * 4, b = blockOf(n / 8);
      if (b >= 0 && m0 + m < rows) __stcg((float4*)(a.partial + segment0 * plane + (size_t(m0 + m) * blocks + b) * 8 + n % 8), *(const float4*)(tileSums + m * PITCH + n));
    }
    __threadfence();
    __syncthreads();
    if (thread == 0) complete = atomicInc(a.arrived + counter, a.segments - 1) == a.segments - 1;
    __syncthreads();
    if (!complete) return;
    __threadfence();
#pragma unroll 4
    for (int i = thread; i < TM * TN / 4; i += THREADS) {
      int m = i / (TN / 4), n = i % (TN / 4) * 4, b = blockOf(n / 8);
      if (b < 0 || m0 + m >= rows) continue;
      const float* p = a.partial + (size_t(m0 + m) * blocks + b) * 8 + n % 8;
      float4 w[4], u;
      for (int s = 0; s < a.segments; s += 4) {
#pragma unroll
        for (int k = 0; k < 4; k++) w[k] = __ldcg((const float4*)(p + min(s + k, a.segments - 1) * plane));
#pragma unroll
        for (int k = 0; k < 4; k++) {
          if (s + k >= a.segments) break;
          if (s + k == 0) u = w[0];
          else u.x += w[k].x, u.y += w[k].y, u.z += w[k].z, u.w += w[k].w;
        }
      }
      *(float4*)(tileSums + m * PITCH + n) = u;
    }
    __syncthreads();
  }
  const int across = a.gated ? TN / 8 : TN / 4; // fours of outputs in a row of the tile
#pragma unroll 1
  for (int i = thread; i < TM * across; i += THREADS) {
    int m = i / across, four = i % across, n = a.gated ? four / 2 * 16 + four % 2 * 4 : four * 4, b = blockOf(n / 8);
    if (b < 0 || m0 + m >= rows) continue;
    float v[4], up[4] = {0, 0, 0, 0};
    *(float4*)v = *(const float4*)(tileSums + m * PITCH + n);
    if (a.gated) *(float4*)up = *(const float4*)(tileSums + m * PITCH + n + 8);
    finish<T, 4>(a, place + m0 + m, b * 8 + n % 8, a.scale ? a.scale[m0 + m] : 1.f, v, up);
  }
}

template <class T, int TN, int TM, int WN, int WM, int STAGES> struct Tile {
  static constexpr int threads = WN * WM * 32, weightBytes = TN * 128, xBytes = TM * 128;
  static constexpr int stageBytes = weightBytes + xBytes, bytes = STAGES * stageBytes;
  static constexpr int NB = TN / 8 / WN, MT = TM / 16 / WM; // blocks and row tiles of a warp
  static constexpr int pitch = TN + 8;                      // of the tile of sums

  static DEVICE void run(const LinearArguments& a) {
    extern __shared__ __align__(128) char memory[];
    const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, r = lane / 4, q = lane % 4;
    const int wn = warp / WM, wm = warp % WM, units = unitsOf(a);
    const int tile = blockIdx.x;
    const bool split = a.partial != nullptr;
    const int segment0 = split ? blockIdx.z : 0, segments = split ? segment0 + 1 : a.segments;
    const int stage0 = segment0 * a.segment / 2, stageEnd = min(segments * a.segment / 2, a.chunks / 2);
    const uint4* weight = a.weight;
    int rows = a.rows, place = 0; // rows of this expert, and where its outputs begin
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
      return u < units ? (a.gated ? 2 * u + j % 2 : u) : -1;
    };
    // What a thread copies of each stage, in 16 bytes: where its pieces begin.
    constexpr int WP = TN * 8 / threads, XP = (TM * 8 + threads - 1) / threads;
    uint32_t weightAt[WP], xAt[XP];
#pragma unroll
    for (int n = 0; n < WP; n++) {
      int i = n * threads + thread, b = blockOf(i / 64);
      weightAt[n] = b >= 0 ? (uint32_t)chunkAt(a.chunks, b, 0) + i % 64 : ~0u;
    }
    auto fetchWeight = [&](int stage, int slot) {
#pragma unroll
      for (int n = 0; n < WP; n++) {
        uint32_t to = base + slot * stageBytes + (n * threads + thread) * 16;
        if (weightAt[n] != ~0u) copyAsync(to, weight + weightAt[n] + stage * pairStep, 16);
        else copyAsync(to, weight, 0);
      }
    };
    auto fetchX = [&](int stage, int slot) {
#pragma unroll
      for (int n = 0; n < XP; n++) {
        int i = n * threads + thread, m = i / 8, piece = i % 8;
        if (TM * 8 < threads && i >= TM * 8) break;
        copyAsync(base + slot * stageBytes + weightBytes + m * 128 + ((piece ^ (m & 7)) << 4), (const uint4*)a.x + xAt[n] + stage * 8, m0 + m < rows ? 16 : 0);
      }
    };
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++)
      if (stage0 + s < stageEnd) fetchWeight(stage0 + s, s);
    if (!a.experts) chain();
#pragma unroll
    for (int n = 0; n < XP; n++) {
      int i = n * threads + thread, at = place + min(m0 + i / 8, rows - 1);
      xAt[n] = (uint32_t)(a.pairs ? a.pairs[at] : at) * (a.xStride / 8) + i % 8;
    }
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
        for (int j = 0; j < NB; j++) b[j] = loadMatrix(w + ((wn * NB + j) * 2 + c) * chunkBytes + lane * 16);
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
    // The tile goes through shared memory, so that what follows is a short loop over
    // outputs that lie side by side.
    float* sums = (float*)memory;
    waitCopies<0>();
    __syncthreads();
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int j = 0; j < NB; j++)
#pragma unroll
        for (int h = 0; h < 2; h++)
          *(float2*)(sums + ((wm * MT + i) * 16 + r + 8 * h) * pitch + (wn * NB + j) * 8 + 2 * q) = make_float2(total[i][j][2 * h], total[i][j][2 * h + 1]);
    finishTile<T, TN, TM, threads, pitch>(a, sums, tile, blockIdx.y * gridDim.x + tile, m0, rows, place, segment0);
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
