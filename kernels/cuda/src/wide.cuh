// wide: the product of many rows on Hopper's warpgroup products (wgmma), which
// run at the tensor cores' full rate; gemm.cuh's reach about half of it.
//
// Operands, result and order of summation are gemm.cuh's, bit for bit (a test
// compares them). Weights are the products' first factor: their order in memory is
// what a warpgroup's lanes hold in registers, 16 rows a warp; x is the second, read
// from shared memory under the 128-byte swizzle.
// Grid: weight tiles × row tiles in groups of 16 row tiles that share weights in
// L2, × segments. A block of 2 warpgroups multiplies 128 weight rows by 128 rows, 64
// columns at a time. Bound: 2·rows·width·columns operations. Reference: ref.Linear.
#pragma once
#include "gemm.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
template <class T> DEVICE void warpgroup(float (&d)[64], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b);
template <> DEVICE void warpgroup<bf16>(float (&d)[64], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
}
template <> DEVICE void warpgroup<f16>(float (&d)[64], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
}
template <int N> DEVICE void waitProducts() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

template <class T> DEVICE void wide(const LinearArguments& a) {
  constexpr int TN = 128, TM = 128, STAGES = 6, THREADS = 256, PITCH = TN + 4;
  constexpr int weightBytes = TN * 128, stageBytes = weightBytes + TM * 128;
  extern __shared__ __align__(128) char memory[];
  char* tiles = memory + (1024 - shared(memory) % 1024) % 1024; // the swizzle counts from 1 KB bounds
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, r = lane / 4, q = lane % 4;
  const int units = unitsOf(a), rowTiles = (a.rows + TM - 1) / TM, weightTiles = gridDim.x / rowTiles;
  const int group = blockIdx.x / (16 * weightTiles), inGroup = blockIdx.x % (16 * weightTiles), high = min(16, rowTiles - group * 16);
  const int tile = inGroup / high, rowTile = group * 16 + inGroup % high, m0 = rowTile * TM;
  const int segment0 = a.partial ? blockIdx.z : 0, segments = a.partial ? segment0 + 1 : a.segments;
  const int stage0 = segment0 * a.segment / 2, stageEnd = min(segments * a.segment / 2, a.chunks / 2);
  const uint32_t base = shared(tiles);

  uint32_t weightAt[4], xAt[4];
#pragma unroll
  for (int n = 0; n < 4; n++) {
    int i = n * THREADS + thread, j = i / 64, u = tile * (a.gated ? TN / 16 : TN / 8) + (a.gated ? j / 2 : j);
    weightAt[n] = u < units ? (uint32_t)(u + (a.gated ? j % 2 * units : 0)) * a.chunks * 32 + i % 64 : ~0u;
    xAt[n] = (uint32_t)min(m0 + i / 8, a.rows - 1) * (a.xStride / 8) + i % 8;
  }
  auto fetchWeight = [&](int stage, int slot) {
#pragma unroll
    for (int n = 0; n < 4; n++)
      copyAsync(base + slot * stageBytes + (n * THREADS + thread) * 16, a.weight + (weightAt[n] != ~0u ? weightAt[n] + stage * 64 : 0), weightAt[n] != ~0u ? 16 : 0);
  };
  auto fetchX = [&](int stage, int slot) {
#pragma unroll
    for (int n = 0; n < 4; n++) {
      int i = n * THREADS + thread, m = i / 8, piece = i % 8;
      copyAsync(base + slot * stageBytes + weightBytes + m * 128 + ((piece ^ (m & 7)) << 4), (const uint4*)a.x + xAt[n] + stage * 8, m0 + m < a.rows ? 16 : 0);
    }
  };
  constexpr int AHEAD = STAGES - 2; // two stages are multiplied at a time
#pragma unroll
  for (int s = 0; s < AHEAD; s++)
    if (stage0 + s < stageEnd) fetchWeight(stage0 + s, s);
  chain();
#pragma unroll
  for (int s = 0; s < AHEAD; s++) {
    if (stage0 + s < stageEnd) fetchX(stage0 + s, s);
    commitCopies();
  }
  float sum[64], total[64];
#pragma unroll
  for (int i = 0; i < 64; i++) sum[i] = total[i] = 0;
  bool begun = false;
  int left = a.segment / 2, slot = 0;
  auto after = [](int slot, int n) { return slot + n >= STAGES ? slot + n - STAGES : slot + n; };
  auto load = [&](uint4 (&w)[4], int slot) {
    const uint32_t at = base + slot * stageBytes;
#pragma unroll
    for (int c = 0; c < 2; c++)
#pragma unroll
      for (int h = 0; h < 2; h++) w[2 * c + h] = loadShared(at + ((2 * warp + h) * 2 + c) * chunkBytes + lane * 16);
  };
  auto issue = [&](const uint4 (&w)[4], int slot) {
    const uint64_t x = (uint64_t)((base + slot * stageBytes + weightBytes) >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62;
#pragma unroll
    for (int c = 0; c < 2; c++) {
      warpgroup<T>(sum, w[2 * c].x, w[2 * c + 1].x, w[2 * c].y, w[2 * c + 1].y, x + c * 4);
      warpgroup<T>(sum, w[2 * c].z, w[2 * c + 1].z, w[2 * c].w, w[2 * c + 1].w, x + c * 4 + 2);
    }
  };
  for (int stage = stage0; stage < stageEnd;) {
    const int count = min(2, min(left, stageEnd - stage));
    waitCopies<AHEAD - 2>();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    for (int n = 0; n < count; n++) {
      int ahead = stage + AHEAD + n, into = after(slot, AHEAD + n);
      if (ahead < stageEnd) fetchWeight(ahead, into), fetchX(ahead, into);
      commitCopies();
    }
    uint4 w[4], v[4];
    load(w, slot);
    load(v, after(slot, 1)); // of no use where count is 1
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    issue(w, slot);
    if (count == 2) issue(v, after(slot, 1));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    waitProducts<0>();
    stage += count, left -= count, slot = after(slot, count);
    if (left == 0 || stage == stageEnd) {
      left = a.segment / 2;
#pragma unroll
      for (int i = 0; i < 64; i++) total[i] = begun ? total[i] + sum[i] : sum[i], sum[i] = 0;
      begun = true;
    }
  }
  waitCopies<0>();
  __syncthreads();
  float* sums = (float*)tiles;
#pragma unroll
  for (int j = 0; j < 16; j++)
#pragma unroll
    for (int e = 0; e < 4; e++) sums[(8 * j + 2 * q + e % 2) * PITCH + warp * 16 + r + e / 2 * 8] = total[4 * j + e];
  finishTile<T, TN, TM, THREADS, PITCH>(a, sums, tile, rowTile * weightTiles + tile, m0, a.rows, 0, segment0);
}
#define WIDE(type) \
  KERNEL __launch_bounds__(256, 1) wide_##type(const __grid_constant__ LinearArguments a) { wide<type>(a); }
WIDE(bf16) WIDE(f16)
#endif
