// joint: the product of rows by a weight that is small and has four segments, on Hopper:
// the blocks of a cluster take a segment each and add in their shared memory.
//
//	out[m,n] (+)= scale[m] · Σ_k x[m,k] · weight[n,k]
//
// x, weight and the order of sums are wide.cuh's, bit for bit. A tile is 128 weight rows ×
// N rows; each block of its cluster adds and finishes its share of the rows. Where `next`
// is, it also makes of its outputs what the product after it reads (norm.cuh's prepare,
// postponed): outputs times a gain in T, and the sum of squares of each row's 128 outputs.
// Grid: a cluster a tile; all have room at once. A block has as many stages on its way as
// its segment has, if a multiprocessor has room. Bound: latency. Reference: ref.Linear.
#pragma once
#include "linear.cuh"
#include "warpgroup.cuh"

constexpr int jointBlocks = 4, jointThreads = 288, jointShared = 225 * 1024;

struct alignas(128) JointArguments {
  LinearArguments a;
  int weightTiles;
  void* next;        // rows × width T, or null
  const float* gain; // of next
  float* squares;    // of next: rows × squareParts
  CUtensorMap x;     // as in wide.cuh
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
template <class T, int N> struct Joint {
  static constexpr int weightBytes = 128 * 128, stageBytes = weightBytes + N * 128, STAGES = jointShared / stageBytes;
  static constexpr int LINE = 132; // floats from row to row of the sums: a warp's stores hit all banks
  static constexpr int OWN = N / jointBlocks, TURNS = (OWN + 7) / 8; // rows that a block, and that a warp finishes

  // One warp.
  static DEVICE void produce(const JointArguments& w, uint32_t tiles, uint32_t full, uint32_t empty, int weightTile, int rowTile, int first, int count) {
    const int lane = threadIdx.x % 32;
    const uint4* from = w.a.weight + chunkAt(w.a.chunks, (weightTile * 2 + min(lane, 1)) * groupBlocks, 0) + size_t(first) * pairStep; // this lane's group of the tile
    auto weights = [&](int i, int slot) {
      if (lane == 0) expectBytes(full + 8 * slot, stageBytes);
      if (lane < 2) copyBulk(tiles + slot * stageBytes + lane * groupBytes, from + size_t(i) * pairStep, groupBytes, full + 8 * slot, plainPolicy());
    };
    const int early = min(STAGES, count); // these weights do not wait for x
    for (int i = 0; i < early; i++) weights(i, i);
    for (int i = early; i < count && lane < 2; i++) prefetchBulk<groupBytes>(from + size_t(i) * pairStep);
    dependency();
    RingSlot ring;
#pragma unroll 1
    for (int i = 0; i < count; i++) {
      if (i >= early) {
        waitBarrier(empty + 8 * ring.slot, ring.phase ^ 1);
        weights(i, ring.slot);
      }
      if (lane == 0) copyTile(tiles + ring.slot * stageBytes + weightBytes, &w.x, (first + i) * 64, rowTile * N, full + 8 * ring.slot);
      ring.next<STAGES>();
    }
  }

  static DEVICE void consume(const JointArguments& w, float* sums, uint32_t tiles, uint32_t full, uint32_t empty, int weightTile, int rowTile, int rank, int count) {
    const LinearArguments& a = w.a;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp / 4, column = weightTile * 128 + lane * 4;
    auto rowOf = [&](int turn) { return rank * OWN + warp + 8 * turn; }; // of the tile, that this warp finishes
    auto mine = [&](int turn) { return warp + 8 * turn < OWN && rowTile * N + rowOf(turn) < a.rows; };
    const float4 gain = w.next ? *(const float4*)(w.gain + column) : make_float4(0, 0, 0, 0);
    dependency();
    float4 old[TURNS];
    float scale[TURNS];
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
      const int m = min(rowTile * N + rowOf(i), a.rows - 1);
      old[i] = a.accumulate ? __ldcg((const float4*)((const float*)a.out + size_t(m) * a.outStride + column)) : make_float4(0, 0, 0, 0);
      scale[i] = a.parts ? inverseRootOf(a, m) : a.scale ? a.scale[m] : 1.f;
    }
    float sum[N / 2];
    RingSlot ring;
    auto issue = [&](int keep) {
      waitBarrier(full + 8 * ring.slot, ring.phase);
      const uint32_t at = tiles + ring.slot * stageBytes;
      const uint64_t weights = factor(at + group * 8192, plainTiles, 128, 1024), rows = factor(at + weightBytes, swizzledTiles, 16, 1024);
      hold(sum);
      beginProducts();
#pragma unroll
      for (int c = 0; c < 4; c++) Warpgroup<T, N>::multiply(sum, weights + c * 16, rows + c * 2, c > 0 || keep);
      commitProducts();
    };
    issue(0);
    int before = ring.slot;
    ring.next<STAGES>();
#pragma unroll 1
    for (int i = 1; i < count; i++) {
      issue(1);
      waitProducts<1>();
      if (threadIdx.x % 128 == 0) arrive(empty + 8 * before);
      before = ring.slot;
      ring.next<STAGES>();
    }
    waitProducts<0>();
    hold(sum);
    syncSome(1, 256); // nobody reads the ring any more: sums lie there
    const int r = lane / 4, q = lane % 4;
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) sums[(8 * j + 2 * q + e % 2) * LINE + warp * 16 + r + 8 * (e / 2)] = sum[4 * j + e];
    syncCluster();
    float4 part[TURNS][jointBlocks];
#pragma unroll
    for (int i = 0; i < TURNS; i++)
      if (mine(i))
#pragma unroll
        for (int k = 0; k < jointBlocks; k++) part[i][k] = loadThere(mapped(shared(sums + rowOf(i) * LINE + lane * 4), k));
    arriveCluster();
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
      if (!mine(i)) continue;
      float v[4] = {part[i][0].x, part[i][0].y, part[i][0].z, part[i][0].w};
#pragma unroll
      for (int k = 1; k < jointBlocks; k++) v[0] += part[i][k].x, v[1] += part[i][k].y, v[2] += part[i][k].z, v[3] += part[i][k].w;
      const float had[4] = {old[i].x, old[i].y, old[i].z, old[i].w}, gains[4] = {gain.x, gain.y, gain.z, gain.w};
      const size_t m = rowTile * N + rowOf(i);
      float squares = 0;
#pragma unroll
      for (int e = 0; e < 4; e++) {
        if (a.scale) v[e] = scaled(v[e], scale[i], -0.f);
        if (a.accumulate) v[e] = added(had[e], v[e]);
        squares = fmaf(v[e], v[e], squares);
      }
      *(float4*)((float*)a.out + m * a.outStride + column) = make_float4(v[0], v[1], v[2], v[3]);
      if (!w.next) continue;
      *(uint2*)((T*)w.next + m * a.width + column) = make_uint2(pair<T>(v[0] * gains[0], v[1] * gains[1]), pair<T>(v[2] * gains[2], v[3] * gains[3]));
      squares = warpSum(squares); // in stageWide's order
      if (lane == 0) w.squares[m * squareParts + weightTile] = squares;
    }
    waitCluster(); // no block ends while another reads its sums
  }

  static DEVICE void run(const JointArguments& w) {
    extern __shared__ __align__(1024) char jointMemory[];
    __shared__ __align__(8) uint64_t barriers[2 * STAGES];
    const uint32_t full = shared(barriers), empty = full + 8 * STAGES;
    const int tile = blockIdx.x / jointBlocks, rank = clusterRank(), weightTile = tile % w.weightTiles, rowTile = tile / w.weightTiles;
    const int length = w.a.segment / 2, first = rank * length, count = min(length, w.a.chunks / 2 - first);
    if (threadIdx.x == 0) {
      for (int s = 0; s < STAGES; s++) initBarrier(full + 8 * s, 1), initBarrier(empty + 8 * s, 2);
      fenceBarriers();
    }
    __syncthreads();
    release();
    if (threadIdx.x < 256) consume(w, (float*)jointMemory, shared(jointMemory), full, empty, weightTile, rowTile, rank, count);
    else produce(w, shared(jointMemory), full, empty, weightTile, rowTile, first, count);
  }
};

#define JOINT(type, N) \
  KERNEL __launch_bounds__(jointThreads, N <= 64 ? 2 : 1) __cluster_dims__(jointBlocks, 1, 1) joint_##type##_##N(const __grid_constant__ JointArguments w) { Joint<type, N>::run(w); }
#define JOINTS(type) JOINT(type, 16) JOINT(type, 32) JOINT(type, 64) JOINT(type, 96) JOINT(type, 128)
JOINTS(bf16) JOINTS(f16)
#endif
