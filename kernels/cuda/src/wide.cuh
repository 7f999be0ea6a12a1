// wide: the product of many rows on Hopper: the copy engine brings tiles, two
// warpgroups multiply them on the tensor cores at their full rate.
//
//	out[m,n] = finish(Σ_k x[m,k] · weight[n,k])
//
// x: (rows, stride ≥ columns padded to 64) T, normalised beforehand. weight:
// (width, columns) T in pack.cuh's order, which is the tensor cores' own. Sums are
// fp32 in the order of linear.cuh: bit for bit what gemv and gemm give.
// A tile is 128 weight rows (8 of each half in turn with a gate) × N rows. Grid: at
// most one block (of a cluster) a multiprocessor, each takes tiles in turn. The
// last tiles, too few for all blocks, are cut at segments: a block then stores its
// segments' sums, waits for those of the others, and adds and finishes a share of
// each such tile.
// A cluster of CL blocks shares its rows of x: each brings a part to all of them.
// Bound: 2·rows·width·columns operations, or 2·width·columns bytes. Reference: ref.Linear.
#pragma once
#include "linear.cuh"
#include "warpgroup.cuh"

struct alignas(128) WideArguments {
  LinearArguments a;
  int whole, tiles; // tiles (of a cluster) taken whole; all
  int weightTiles, rowTiles;
  int once; // weights are read once: they leave L2 first
  CUtensorMap weight; // words of 4 bytes of a block, (half,) block
  CUtensorMap x;                  // columns, rows; tiles of 64 columns under the 128-byte swizzle
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr int wideWeights = 128, wideThreads = 384, widePitch = 68;
constexpr int wideShared = 225 * 1024; // of the 227 KB that a block may have

template <class T, int N, int CL> struct Wide {
  static constexpr int EIGHTS = N / 8, PIECE = EIGHTS < 4 ? EIGHTS : 4; // eights of rows; those that go to the output at a time
  static constexpr int weightBytes = wideWeights * 128, stageBytes = weightBytes + N * 128;
  static constexpr int stagingBytes = 2 * PIECE * 8 * widePitch * 4;
  static constexpr int stagesThatFit = (wideShared - stagingBytes - 1024) / stageBytes, STAGES = stagesThatFit > 8 ? 8 : stagesThatFit;
  static constexpr bool totals = N <= 192; // registers for sums of segments
  static constexpr int GROUP = 16;         // row tiles that share weights in L2

  // What a block works on, one after the other: whole tiles, then segments of tiles.
  struct Work {
    int tile, segment, stage, end; // segment -1: all
  };
  static DEVICE int blocks() { return gridDim.x / CL; }
  static DEVICE int units(const WideArguments& w) { return (w.tiles - w.whole) * w.a.segments; }
  static DEVICE int firstUnit(const WideArguments& w, int block) { return (long long)units(w) * block / blocks(); }
  static DEVICE bool work(const WideArguments& w, int i, Work& k) {
    const int block = blockIdx.x / CL, all = w.a.chunks / 2, length = w.a.segment / 2;
    const int own = w.whole > block ? (w.whole - block - 1) / blocks() + 1 : 0;
    if (i < own) {
      k = {block + i * blocks(), -1, 0, all};
      return true;
    }
    const int unit = firstUnit(w, block) + i - own;
    if (unit >= firstUnit(w, block + 1)) return false;
    const int s = unit % w.a.segments;
    k = {w.whole + unit / w.a.segments, s, s * length, min((s + 1) * length, all)};
    return true;
  }
  static DEVICE void place(const WideArguments& w, int tile, int rank, int& weightTile, int& rowTile) {
    const int group = tile / (GROUP * w.weightTiles), in = tile % (GROUP * w.weightTiles), high = min(GROUP, w.rowTiles - group * GROUP);
    weightTile = in / high * CL + rank, rowTile = group * GROUP + in % high;
  }

  static DEVICE void produce(const WideArguments& w, uint32_t tiles, uint32_t full, uint32_t empty, int rank) {
    const uint64_t policy = w.once ? streamingPolicy() : plainPolicy();
    int weightTile, rowTile;
    auto weights = [&](int stage, int slot) {
      expectBytes(full + 8 * slot, stageBytes);
      copyTile(tiles + slot * stageBytes, &w.weight, stage * 256, w.a.gated ? 0 : weightTile * 16, w.a.gated ? weightTile * 8 : 0, full + 8 * slot, policy);
    };
    auto rows = [&](int stage, int slot) {
      const uint32_t to = tiles + slot * stageBytes + weightBytes;
      if (CL == 1) copyTile(to, &w.x, stage * 64, rowTile * N, full + 8 * slot);
      else copyTileTo((1 << CL) - 1, to + rank * (N / CL) * 128, &w.x, stage * 64, rowTile * N + rank * (N / CL), full + 8 * slot);
    };
    Work k;
    if (!work(w, 0, k)) {
      dependency();
      return;
    }
    place(w, k.tile, rank, weightTile, rowTile);
    const int early = min(STAGES, k.end - k.stage); // these weights do not wait for x
    for (int s = 0; s < early; s++) weights(k.stage + s, s);
    dependency();
    RingSlot ring;
    int done = 0;
    for (int i = 0; work(w, i, k); i++) {
      place(w, k.tile, rank, weightTile, rowTile);
#pragma unroll 1
      for (int stage = k.stage; stage < k.end; stage++) {
        waitBarrier(empty + 8 * ring.slot, ring.phase ^ 1);
        if (done++ >= early) weights(stage, ring.slot);
        rows(stage, ring.slot);
        ring.next<STAGES>();
      }
    }
  }

  // Takes up to PIECE eights of rows' sums of this warpgroup's 64 weight rows to the output, count
  // eights of rows from m0 on: sums(at) lays them into shared memory. What the
  // outputs are added to and multiplied by is on its way before the sums are asked for.
  template <class Sums> static DEVICE void put(const LinearArguments& a, float* staged, int weightTile, int m0, int count, int group, Sums sums) {
    const int thread = threadIdx.x % 128, lane = thread % 32, r = lane / 4, q = lane % 4, units = unitsOf(a);
    const int across = a.gated ? 8 : 16; // fours of outputs of a row
    float old[PIECE][4], scale[PIECE];
    auto place = [&](int k, int& m, int& n, int& b) {
      const int i = k * 128 + thread, four = i % across;
      m = i / across, n = a.gated ? four / 2 * 16 + four % 2 * 4 : four * 4;
      b = a.gated ? weightTile * 8 + group * 4 + n / 16 : weightTile * 16 + group * 8 + n / 8;
      return m < count * 8 && b < units && m0 + m < a.rows;
    };
#pragma unroll
    for (int k = 0; k < PIECE; k++) {
      int m, n, b;
      if (!place(k, m, n, b)) continue;
      scale[k] = a.scale ? a.scale[m0 + m] : 1.f;
      standing<T, 4>(a, m0 + m, b * 8 + n % 8, old[k]);
    }
    sums(staged + 2 * q * widePitch + thread / 32 * 16 + r);
    syncSome(1 + group, 128);
#pragma unroll
    for (int k = 0; k < PIECE; k++) {
      int m, n, b;
      if (!place(k, m, n, b)) continue;
      float v[4], up[4] = {0, 0, 0, 0};
      *(float4*)v = *(const float4*)(staged + m * widePitch + n);
      if (a.gated) *(float4*)up = *(const float4*)(staged + m * widePitch + n + 8);
      finish<T, 4>(a, m0 + m, b * 8 + n % 8, scale[k], v, up, old[k]);
    }
    syncSome(1 + group, 128);
  }
  // Lays one eight of rows into `staged`.
  static DEVICE void lay(float* at, int j, const float (&d)[4]) {
    float* to = at + j * 8 * widePitch;
    to[0] = d[0], to[widePitch] = d[1], to[8] = d[2], to[widePitch + 8] = d[3];
  }

  static DEVICE void consume(const WideArguments& w, uint32_t tiles, uint32_t full, uint32_t empty, float* staged, int group, int rank) {
    const LinearArguments& a = w.a;
    const int thread = threadIdx.x % 256;
    float4* partial = (float4*)a.partial; // (segment, block of cluster, eight of rows, thread)
    float sum[N / 2], total[totals ? N / 2 : 1];
    auto result = [&](int i) -> float& { return totals ? total[totals ? i : 0] : sum[i]; };
    auto release = [&](int slot) {
      if (thread % 128 == 0) {
        if (CL == 1) arrive(empty + 8 * slot);
        else
          for (int c = 0; c < CL; c++) arriveAt(empty + 8 * slot, c);
      }
    };
    RingSlot ring;
    auto issue = [&](int slot, int keep) {
      waitBarrier(full + 8 * slot, ring.phase);
      const uint32_t at = tiles + slot * stageBytes;
      const uint64_t weights = factor(at + group * 8192, plainTiles, 128, 1024), rows = factor(at + weightBytes, swizzledTiles, 16, 1024);
      hold(sum);
      beginProducts();
#pragma unroll
      for (int c = 0; c < 4; c++) Warpgroup<T, N>::multiply(sum, weights + c * 16, rows + c * 2, c > 0 || keep);
      commitProducts();
    };
    dependency();
    Work k;
    int weightTile, rowTile, i = 0;
    for (; work(w, i, k); i++) {
      for (int stage = k.stage; stage < k.end; stage += a.segment / 2) {
        const int end = min(stage + a.segment / 2, k.end);
        int before = ring.slot;
        issue(ring.slot, 0);
        ring.next<STAGES>();
#pragma unroll 1
        for (int n = stage + 1; n < end; n++) {
          issue(ring.slot, 1);
          waitProducts<1>();
          release(before);
          before = ring.slot;
          ring.next<STAGES>();
        }
        waitProducts<0>();
        hold(sum);
        release(before);
        if (totals)
#pragma unroll
          for (int e = 0; e < N / 2; e++) result(e) = stage > k.stage ? result(e) + sum[e] : sum[e];
      }
      place(w, k.tile, rank, weightTile, rowTile);
      if (k.segment >= 0) {
        const int at = ((k.tile - w.whole) * CL + rank) * a.segments + k.segment;
#pragma unroll
        for (int j = 0; j < EIGHTS; j++)
          __stcg(partial + (size_t(at) * EIGHTS + j) * 256 + thread, make_float4(result(4 * j), result(4 * j + 1), result(4 * j + 2), result(4 * j + 3)));
        __threadfence();
        syncSome(3, 256);
        if (thread == 0) atomicAdd(a.arrived + 2 * ((k.tile - w.whole) * CL + rank), 1u);
        continue;
      }
#pragma unroll 1
      for (int p = 0; p < EIGHTS / PIECE; p++)
        put(a, staged, weightTile, rowTile * N + p * PIECE * 8, PIECE, group, [&](float* at) {
#pragma unroll
          for (int j = 0; j < EIGHTS; j++)
            if (j / PIECE == p) lay(at, j % PIECE, {result(4 * j), result(4 * j + 1), result(4 * j + 2), result(4 * j + 3)});
        });
    }
    // The segments' tiles: this block finishes a share of each that it has a segment of.
    const int block = blockIdx.x / CL;
    for (int unit = firstUnit(w, block); unit < firstUnit(w, block + 1); unit++) {
      const int s = unit % a.segments, tile = unit / a.segments, at = tile * CL + rank;
      place(w, w.whole + tile, rank, weightTile, rowTile);
      unsigned* arrived = a.arrived + 2 * at;
      const int first = s * EIGHTS / a.segments, last = (s + 1) * EIGHTS / a.segments;
#pragma unroll 1
      for (int j0 = first; j0 < last; j0 += PIECE)
        put(a, staged, weightTile, rowTile * N + j0 * 8, min(PIECE, last - j0), group, [&](float* to) {
          if (j0 == first) waitForAll(arrived, a.segments, thread % 128, group);
          float4 v[PIECE];
          const float4* from = partial + size_t(at) * a.segments * EIGHTS * 256 + thread;
          for (int k = 0; k < a.segments; k += 4) {
            float4 u[4][PIECE];
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
              for (int j = 0; j < PIECE; j++) u[n][j] = __ldcg(from + (min(k + n, a.segments - 1) * EIGHTS + min(j0 + j, EIGHTS - 1)) * 256);
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
              for (int j = 0; j < PIECE; j++)
                if (k + n == 0) v[j] = u[n][j];
                else if (k + n < a.segments) v[j].x += u[n][j].x, v[j].y += u[n][j].y, v[j].z += u[n][j].z, v[j].w += u[n][j].w;
          }
#pragma unroll
          for (int j = 0; j < PIECE; j++) lay(to, j, {v[j].x, v[j].y, v[j].z, v[j].w});
        });
      if (first == last) waitForAll(arrived, a.segments, thread % 128, group);
    }
  }
  // Waits until all segments of a tile are there; the last warpgroup that has seen it
  // sets the counters back.
  static DEVICE void waitForAll(unsigned* arrived, int segments, int thread, int group) {
    if (thread == 0) {
      unsigned n;
      do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(n) : "l"(arrived) : "memory");
      while (n < (unsigned)segments);
      if (atomicAdd(arrived + 1, 1u) == 2u * segments - 1) arrived[0] = arrived[1] = 0;
    }
    syncSome(1 + group, 128);
  }

  static DEVICE void run(const WideArguments& w) {
    extern __shared__ __align__(128) char memory[];
    __shared__ __align__(8) uint64_t barriers[2 * STAGES];
    char* aligned = memory + (1024 - shared(memory) % 1024) % 1024; // the swizzle counts from 1 KB bounds
    const uint32_t full = shared(barriers), empty = full + 8 * STAGES;
    const int group = threadIdx.x / 128, rank = CL == 1 ? 0 : clusterRank();
    if (threadIdx.x == 0) {
      for (int s = 0; s < STAGES; s++) initBarrier(full + 8 * s, 1), initBarrier(empty + 8 * s, 2 * CL);
      fenceBarriers();
    }
    if (CL == 1) __syncthreads();
    else syncCluster();
    release();
    float* staged = (float*)(aligned + STAGES * stageBytes);
    if (group == 2) {
      lowerRegisters<40>();
      if (threadIdx.x == 256) produce(w, shared(aligned), full, empty, rank);
    } else {
      raiseRegisters<232>();
      consume(w, shared(aligned), full, empty, staged + group * PIECE * 8 * widePitch, group, rank);
    }
    if (CL > 1) syncCluster(); // no block ends while another may write to it
  }
};

#define WIDE(type, N, CL) \
  KERNEL __launch_bounds__(wideThreads, 1) __cluster_dims__(CL, 1, 1) wide_##type##_##N##_##CL(const __grid_constant__ WideArguments w) { Wide<type, N, CL>::run(w); }
#define WIDES(type) \
  WIDE(type, 16, 1) WIDE(type, 32, 1) WIDE(type, 64, 1) WIDE(type, 128, 1) WIDE(type, 128, 2) \
  WIDE(type, 192, 1) WIDE(type, 192, 2) WIDE(type, 256, 1) WIDE(type, 256, 2)
WIDES(bf16) WIDES(f16)
#endif
