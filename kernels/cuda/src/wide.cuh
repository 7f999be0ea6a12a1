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
  int once;    // weights are read once: they leave L2 first
  int engine;  // outputs leave through shared memory and the copy engine, else by threads
  CUtensorMap weight; // words of 4 bytes of a block, (half,) block
  CUtensorMap x;                  // columns, rows; tiles of 64 columns under the 128-byte swizzle
  CUtensorMap out;                // columns, rows; a piece of wide rows: see Wide::put
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr int wideWeights = 128, wideThreads = 384;
constexpr int wideShared = 226 * 1024 + 256; // of the 227 KB that a block may have

template <class T, int N, int CL> struct Wide {
  static constexpr int EIGHTS = N / 8, PIECE = N == 192 ? 3 : N >= 64 ? 4 : 1; // eights of rows; those that go to the output at a time
  static constexpr int PIECES = EIGHTS / PIECE, pieceBytes = 64 * PIECE * 8 * 4; // of a warpgroup, in float32
  static constexpr int weightBytes = wideWeights * 128, stageBytes = weightBytes + N * 128;
  static constexpr int afterStages = 4 * pieceBytes + 2 * N * 4 + 128; // two pieces and the rows' scales of each warpgroup, barriers
  static constexpr int stagesThatFit = (wideShared - afterStages) / stageBytes, STAGES = stagesThatFit > 8 ? 8 : stagesThatFit;
  static constexpr bool totals = N <= 192; // registers for sums of segments
  static constexpr int GROUP = N == 256 ? 8 : 16; // row tiles that share weights in L2

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

  // Has the scales of a tile's rows on their way into shared memory.
  static DEVICE void fetchScales(const LinearArguments& a, const float* scales, int m0) {
    if (a.scale)
      for (int m = threadIdx.x % 128; m < N; m += 128)
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared(scales + m)), "l"(a.scale + min(m0 + m, a.rows - 1)), "r"(m0 + m < a.rows ? 4 : 0) : "memory");
    commitCopies();
  }

  // Takes a piece, PIECE eights of rows from m0 on, of this warpgroup's 64 weight rows
  // to the output. d is what wgmma leaves: rows r and r + 8 of a warp's 16, so with a
  // gate both factors are in one lane. With the engine, threads lay finished values
  // into one of two buffers, under the swizzle that makes a warp's stores hit all
  // banks, and go on while they leave; sums onto what stands there are made in L2.
  static DEVICE void put(const WideArguments& w, char* buffers, int buffer, const float* scales, int weightTile, int m0, int group, float (&d)[PIECE][4]) {
    const LinearArguments& a = w.a;
    const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32, r = lane / 4, q = lane % 4;
    const int limit = a.gated ? a.width / 2 : a.width;
    const int n = a.gated ? (weightTile * 8 + group * 4 + warp) * 8 + r : weightTile * 128 + group * 64 + warp * 16 + r;
    char* staged = buffers + (group * 2 + buffer) * pieceBytes;
    if (w.engine && thread == 0) asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
    waitCopies<0>();
    syncSome(1 + group, 128);
    const float bias0 = a.bias && n < limit ? a.bias[n] : -0.f, bias1 = !a.bias ? -0.f : a.gated ? n < limit ? a.bias[n + limit] : -0.f : n + 8 < limit ? a.bias[n + 8] : -0.f;
#pragma unroll
    for (int j = 0; j < PIECE; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) d[j][e] = scaled(d[j][e], scales[j * 8 + 2 * q + e % 2], e < 2 ? bias0 : bias1);
    auto each = [&](auto change) {
#pragma unroll
      for (int j = 0; j < PIECE; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
          if (e < 2 || !a.gated) d[j][e] = change(d[j][e]);
    };
    if (a.softcap > 0) each([&](float v) { return softcapped(a.softcap, v); });
    if (a.activation == silu) each([](float v) { return activate<T>(silu, v); });
    else if (a.activation) each([&](float v) { return activate<T>(a.activation, v); });
    if (a.gated)
#pragma unroll
      for (int j = 0; j < PIECE; j++) d[j][0] = __fmul_rn(d[j][0], d[j][2]), d[j][1] = __fmul_rn(d[j][1], d[j][3]);
    if (!w.engine) {
#pragma unroll
      for (int j = 0; j < PIECE; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int m = m0 + j * 8 + 2 * q + e % 2, at = n + e / 2 * 8;
          if (m >= a.rows || at >= limit || a.gated && e > 1) continue;
          store<T>(a, m, at, d[j][e]);
        }
      syncSome(1 + group, 128); // the scales were read
      return;
    }
    const uint32_t to = shared(staged);
    if (!a.outNarrow) {
#pragma unroll
      for (int j = 0; j < PIECE; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int m = j * 8 + 2 * q + e % 2, word = warp % 2 * 16 + e / 2 * 8 + r;
          asm volatile("st.shared.f32 [%0], %1;" ::"r"(to + warp / 2 * (PIECE * 1024) + m * 128 + ((word / 4 ^ m % 8) << 4) + word % 4 * 4), "f"(d[j][e]) : "memory");
        }
    } else {
#pragma unroll
      for (int j = 0; j < PIECE; j++) {
        const int m = j * 8 + lane % 8;
        if (a.gated) asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(to + m * 64 + ((warp ^ m / 2 % 4) << 4)), "r"(pair<T>(d[j][0], d[j][1])) : "memory");
        else
          asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(to + m * 128 + ((warp * 2 + lane / 8 % 2 ^ m % 8) << 4)), "r"(pair<T>(d[j][0], d[j][1])), "r"(pair<T>(d[j][2], d[j][3]))
                       : "memory");
      }
    }
    fenceEngine();
    syncSome(1 + group, 128);
    if (thread) return;
    const int column = a.gated ? weightTile * 64 + group * 32 : weightTile * 128 + group * 64;
    for (int half = 0; half < (a.outNarrow ? 1 : 2); half++)
      if (column + half * 32 < limit) storeTile(&w.out, column + half * 32, m0, to + half * (PIECE * 1024), a.accumulate);
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  }

  static DEVICE void consume(const WideArguments& w, uint32_t tiles, uint32_t full, uint32_t empty, char* buffers, float* scales, int group, int rank) {
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
    if (!a.scale)
      for (int m = thread % 128; m < N; m += 128) scales[m] = 1;
    dependency();
    Work k;
    int weightTile, rowTile, i = 0, buffer = 0;
    for (; work(w, i, k); i++) {
      place(w, k.tile, rank, weightTile, rowTile);
      if (k.segment < 0) fetchScales(a, scales, rowTile * N);
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
      if (k.segment >= 0) {
        const int at = ((k.tile - w.whole) * CL + rank) * a.segments + k.segment;
#pragma unroll
        for (int j = 0; j < EIGHTS; j++)
          __stcg(partial + (size_t(at) * EIGHTS + j) * 256 + thread, make_float4(result(4 * j), result(4 * j + 1), result(4 * j + 2), result(4 * j + 3)));
        syncSome(3, 256);
        if (thread == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(a.arrived + 2 * ((k.tile - w.whole) * CL + rank)) : "memory");
        continue;
      }
#pragma unroll 1
      for (int p = 0; p < PIECES; p++, buffer ^= 1) {
        float d[PIECE][4];
#pragma unroll
        for (int j = 0; j < EIGHTS; j++)
          if (j / PIECE == p) {
#pragma unroll
            for (int e = 0; e < 4; e++) d[j % PIECE][e] = result(4 * j + e);
          }
        put(w, buffers, buffer, scales + p * PIECE * 8, weightTile, rowTile * N + p * PIECE * 8, group, d);
      }
    }
    // The segments' tiles: this block finishes a share of each that it has a segment of.
    const int block = blockIdx.x / CL;
    for (int unit = firstUnit(w, block); unit < firstUnit(w, block + 1); unit++) {
      const int s = unit % a.segments, tile = unit / a.segments, at = tile * CL + rank;
      place(w, w.whole + tile, rank, weightTile, rowTile);
      unsigned* arrived = a.arrived + 2 * at;
      const int first = s * PIECES / a.segments, last = (s + 1) * PIECES / a.segments;
      waitForAll(arrived, a.segments, thread % 128, group);
      if (first < last) fetchScales(a, scales, rowTile * N);
#pragma unroll 1
      for (int p = first; p < last; p++, buffer ^= 1) {
        float v[PIECE][4];
        const float4* from = (const float4*)a.partial + (size_t(at) * a.segments * EIGHTS + p * PIECE) * 256 + thread;
        for (int k = 0; k < a.segments; k += 4) {
          float4 u[4][PIECE];
#pragma unroll
          for (int n = 0; n < 4; n++)
#pragma unroll
            for (int j = 0; j < PIECE; j++) u[n][j] = __ldcg(from + (min(k + n, a.segments - 1) * EIGHTS + j) * 256);
#pragma unroll
          for (int n = 0; n < 4; n++)
#pragma unroll
            for (int j = 0; j < PIECE; j++)
              if (k + n == 0) v[j][0] = u[n][j].x, v[j][1] = u[n][j].y, v[j][2] = u[n][j].z, v[j][3] = u[n][j].w;
              else if (k + n < a.segments) v[j][0] += u[n][j].x, v[j][1] += u[n][j].y, v[j][2] += u[n][j].z, v[j][3] += u[n][j].w;
        }
        put(w, buffers, buffer, scales + p * PIECE * 8, weightTile, rowTile * N + p * PIECE * 8, group, v);
      }
    }
    if (w.engine && thread % 128 == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
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
    extern __shared__ __align__(1024) char wideMemory[]; // the swizzle counts from 1 KB bounds
    char* buffers = wideMemory + STAGES * stageBytes;
    float* scales = (float*)(buffers + 4 * pieceBytes); // per warpgroup
    const uint32_t full = shared(scales + 2 * N), empty = full + 8 * STAGES;
    const int group = threadIdx.x / 128, rank = CL == 1 ? 0 : clusterRank();
    if (threadIdx.x == 0) {
      for (int s = 0; s < STAGES; s++) initBarrier(full + 8 * s, 1), initBarrier(empty + 8 * s, 2 * CL);
      fenceBarriers();
    }
    if (CL == 1) __syncthreads();
    else syncCluster();
    release();
    if (group == 2) {
      lowerRegisters<40>();
      if (threadIdx.x == 256) produce(w, shared(wideMemory), full, empty, rank);
    } else {
      raiseRegisters<232>();
      consume(w, shared(wideMemory), full, empty, buffers, scales + group * N, group, rank);
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
