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
#include "heads.cuh"
#include "warpgroup.cuh"
#include <type_traits>

struct alignas(128) WideArguments {
  LinearArguments a;
  int whole, tiles; // tiles (of a cluster) taken whole; all
  int weightTiles, rowTiles;
  int once;    // weights are read once: they leave L2 first
  int engine;  // outputs leave through shared memory and the copy engine, else by threads
  HeadArguments h;
  CUtensorMap weight; // of heads: lines of 1 KB, halves of a head, blocks of a half, stages, heads
  CUtensorMap x;                  // columns, rows; tiles of 64 columns under the 128-byte swizzle
  CUtensorMap out;                // columns, rows; a piece of wide rows: see Wide::put
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr int wideWeights = 128, wideThreads = 384;
constexpr int wideShared = 226 * 1024 + 256; // of the 227 KB that a block may have

// How outputs are finished: float32, with scales and biases at most; a gate with silu,
// narrow; or any way. The first two are unrolled and without branches: one warp a
// scheduler has nothing to hide its instructions behind.
enum Ending { plainEnding, gatedEnding, anyEnding };
template <int E> using As = std::integral_constant<int, E>;

// `totals`: weights may have several segments.

// `heads`: outputs are turned and stored (heads.cuh).
template <class T, int N, int CL, bool totals = N <= 192, bool heads = false> struct Wide {
  static constexpr int EIGHTS = N / 8, PIECE = N < 64 ? 1 : N % 48 == 0 ? 3 : N % 32 == 0 ? 4 : 2; // eights of rows; those that go to the output at a time
  static constexpr int PIECES = EIGHTS / PIECE, pieceBytes = 64 * PIECE * 8 * 4; // of a warpgroup, in float32
  // Sums of segments: a thread keeps so many in registers, holds the rest in shared
  // memory, where afterwards the tile's outputs are laid.
  static constexpr int KEPT = !totals ? 0 : N > 192 ? 192 - N / 2 : N / 2;
  static constexpr bool HELD = totals && KEPT < N / 2;
  // Of a warpgroup's two slots, from which pieces leave.
  static constexpr int leastBytes = PIECE == 2 ? 2 * pieceBytes : pieceBytes, heldBytes = (N / 2 - KEPT) * 512;
  static constexpr int AHEAD = HELD ? 3 : 2; // pieces whose angles are on their way
  using H = Heads<T, N, PIECE, AHEAD>;
  static constexpr int slotsBytes = heads ? H::slotsBytes : 2 * leastBytes;
  static constexpr int slotBytes = (HELD && heldBytes > slotsBytes ? heldBytes : slotsBytes) / 2;
  static constexpr int weightBytes = wideWeights * 128, stageBytes = weightBytes + N * 128;
  static constexpr int rowWords = heads ? H::WORDS : 1; // the first: its scale
  static constexpr int afterStages = 4 * slotBytes + 2 * N * 4 * rowWords + 128; // slots and what rows have, of each warpgroup; barriers
  static constexpr int stagesThatFit = (wideShared - afterStages) / stageBytes, STAGES = stagesThatFit > 8 ? 8 : stagesThatFit;
  static constexpr int GROUP = N > 192 ? 8 : 16; // row tiles that share weights in L2
  static constexpr bool takesParts = N <= 128; // scales may come as sums of squares (joint.cuh)

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

  // One warp.
  static DEVICE void produce(const WideArguments& w, uint32_t tiles, uint32_t full, uint32_t empty, int rank) {
    const uint64_t policy = w.once ? streamingPolicy() : plainPolicy();
    int weightTile, rowTile;
    const int lane = threadIdx.x % 32, last = ((w.a.gated ? 2 : 1) * unitsOf(w.a) - 1) / groupBlocks;
    const uint4* from; // this lane's group of the tile; what one past the end gives is not stored
    auto weights = [&](int stage, int slot) {
      if (lane == 0) expectBytes(full + 8 * slot, stageBytes);
      if constexpr (heads) { // blocks of the halves of a head in turn
        const int per = w.h.size / 16; // blocks of half a head
        for (int z = 0; z < 8 && lane == 0; z += per) copyTile(tiles + slot * stageBytes + z * 2048, &w.weight, 0, 0, 0, stage, (weightTile * 8 + z) / per, full + 8 * slot, policy);
      } else if (lane < 2) copyBulk(tiles + slot * stageBytes + lane * groupBytes, from + size_t(stage) * pairStep, groupBytes, full + 8 * slot, policy);
    };
    auto begin = [&](const Work& k) {
      place(w, k.tile, rank, weightTile, rowTile);
      from = w.a.weight + chunkAt(w.a.chunks, min(weightTile * 2 + lane, last) * groupBlocks, 0);
    };
    auto rows = [&](int stage, int slot) {
      const uint32_t to = tiles + slot * stageBytes + weightBytes;
      if (lane) return;
      if (CL == 1) copyTile(to, &w.x, stage * 64, rowTile * N, full + 8 * slot);
      else copyTileTo((1 << CL) - 1, to + rank * (N / CL) * 128, &w.x, stage * 64, rowTile * N + rank * (N / CL), full + 8 * slot);
    };
    Work k;
    if (!work(w, 0, k)) {
      dependency();
      return;
    }
    begin(k);
    const int early = min(STAGES, k.end - k.stage); // these weights do not wait for x
    for (int s = 0; s < early; s++) weights(k.stage + s, s);
    dependency();
    RingSlot ring;
    int done = 0;
    for (int i = 0; work(w, i, k); i++) {
      begin(k);
#pragma unroll 1
      for (int stage = k.stage; stage < k.end; stage++) {
        waitBarrier(empty + 8 * ring.slot, ring.phase ^ 1);
        if (done++ >= early) weights(stage, ring.slot);
        rows(stage, ring.slot);
        ring.next<STAGES>();
      }
    }
  }

  // Has the scales of a tile's rows on their way into shared memory, and where the rows stand.
  static DEVICE void fetchScales(const WideArguments& w, float* scales, int m0) {
    const LinearArguments& a = w.a;
    if (takesParts && a.parts)
      for (int m = threadIdx.x % 128; m < N; m += 128) scales[m] = inverseRootOf(a, min(m0 + m, a.rows - 1));
    else if (a.scale)
      for (int m = threadIdx.x % 128; m < N; m += 128)
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared(scales + m)), "l"(a.scale + min(m0 + m, a.rows - 1)), "r"(m0 + m < a.rows ? 4 : 0) : "memory");
    if constexpr (heads) H::fetch(a, w.h, scales, m0);
    commitCopies();
  }

  static DEVICE int ending(const WideArguments& w) {
    const LinearArguments& a = w.a;
    if (!w.engine || a.softcap > 0) return anyEnding;
    return !a.gated && !a.outNarrow && !a.activation ? plainEnding : a.gated && a.outNarrow && a.activation == silu ? gatedEnding : anyEnding;
  }
  template <int ENDING> static DEVICE bool gates(const LinearArguments& a) { return ENDING == gatedEnding || ENDING == anyEnding && a.gated; }
  template <int ENDING> static DEVICE bool narrows(const LinearArguments& a) { return ENDING == gatedEnding || ENDING == anyEnding && a.outNarrow; }
  // Pieces that leave together, and the bytes that one takes of a slot.
  static constexpr int roundOf(int ending) {
    constexpr int gated = PIECE == 2 ? 8 : 4;
    return ending == gatedEnding ? (PIECES < gated ? PIECES : gated) : ending == plainEnding ? slotBytes / pieceBytes : 1;
  }
  static constexpr int placeOf(int ending) { return ending == gatedEnding ? pieceBytes / 4 : pieceBytes; }
  // Before a tile's first piece: its scales are there, and a slot is free.
  static DEVICE void beginPut(int group) {
    waitCopies<0>();
    if (threadIdx.x % 32 == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
    syncSome(1 + group, 128);
  }

  // Finishes a piece, PIECE eights of rows from m0 on, of this warpgroup's 64 weight
  // rows. d is what wgmma leaves: rows r and r + 8 of a warp's 16, so with a gate both
  // factors are in one lane. For the engine, threads lay finished values at `to`, under
  // the swizzle that makes a warp's stores hit all banks; without it they store them.
  template <int ENDING> static DEVICE void lay(const WideArguments& w, uint32_t to, const float* scales, int weightTile, int m0, int group, float (&d)[PIECE][4]) {
    const LinearArguments& a = w.a;
    const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32, r = lane / 4, q = lane % 4;
    const bool gated = gates<ENDING>(a), narrowed = narrows<ENDING>(a);
    const int limit = gated ? a.width / 2 : a.width;
    const int n = gated ? (weightTile * 8 + group * 4 + warp) * 8 + r : weightTile * 128 + group * 64 + warp * 16 + r;
    if (a.scale || a.bias) {
      const float bias0 = a.bias && n < limit ? a.bias[n] : -0.f, bias1 = !a.bias ? -0.f : gated ? n < limit ? a.bias[n + limit] : -0.f : n + 8 < limit ? a.bias[n + 8] : -0.f;
#pragma unroll
      for (int j = 0; j < PIECE; j++) {
        const float2 scale = *(const float2*)(scales + j * 8 + 2 * q);
#pragma unroll
        for (int e = 0; e < 4; e++) d[j][e] = scaled(d[j][e], e % 2 ? scale.y : scale.x, e < 2 ? bias0 : bias1);
      }
    }
    if (ENDING == anyEnding) {
      auto each = [&](auto change) {
#pragma unroll
        for (int j = 0; j < PIECE; j++)
#pragma unroll
          for (int e = 0; e < 4; e++)
            if (e < 2 || !gated) d[j][e] = change(d[j][e]);
      };
      if (a.softcap > 0) each([&](float v) { return softcapped(a.softcap, v); });
      if (a.activation) each([&](float v) { return activate<T>(a.activation, v); });
    }
    if (ENDING == gatedEnding)
#pragma unroll
      for (int j = 0; j < PIECE; j++) d[j][0] = activate<T>(silu, d[j][0]), d[j][1] = activate<T>(silu, d[j][1]);
    if (gated)
#pragma unroll
      for (int j = 0; j < PIECE; j++) d[j][0] = __fmul_rn(d[j][0], d[j][2]), d[j][1] = __fmul_rn(d[j][1], d[j][3]);
    if (ENDING == anyEnding && !w.engine) {
#pragma unroll
      for (int j = 0; j < PIECE; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int m = m0 + j * 8 + 2 * q + e % 2, at = n + e / 2 * 8;
          if (m >= a.rows || at >= limit || gated && e > 1) continue;
          store<T>(a, m, at, d[j][e]);
        }
      return;
    }
    if (!narrowed) {
#pragma unroll
      for (int j = 0; j < PIECE; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int m = 2 * q + e % 2, word = warp % 2 * 16 + e / 2 * 8 + r;
          asm volatile("st.shared.f32 [%0], %1;" ::"r"(to + warp / 2 * (PIECE * 1024) + m * 128 + ((word / 4 ^ m) << 4) + word % 4 * 4 + j * 1024), "f"(d[j][e]) : "memory");
        }
    } else {
#pragma unroll
      for (int j = 0; j < PIECE; j++) {
        const int m = lane % 8;
        if (gated) asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(to + m * 64 + ((warp ^ m / 2) << 4) + j * 512), "r"(pair<T>(d[j][0], d[j][1])) : "memory");
        else
          asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(to + m * 128 + ((warp * 2 + lane / 8 % 2 ^ m) << 4) + j * 1024), "r"(pair<T>(d[j][0], d[j][1])), "r"(pair<T>(d[j][2], d[j][3]))
                       : "memory");
      }
    }
  }
  // Has at most COUNT pieces that were laid into a slot leave while threads go on, and the
  // other slot free. Sums onto what stands in the output are made in L2.
  template <int ENDING, int COUNT> static DEVICE void leave(const WideArguments& w, uint32_t from, int weightTile, int m0, int group, int count) {
    const LinearArguments& a = w.a;
    const int thread = threadIdx.x % 128;
    const bool gated = gates<ENDING>(a), narrowed = narrows<ENDING>(a);
    const int limit = gated ? a.width / 2 : a.width, halves = narrowed ? 1 : 2;
    fenceEngine();
    if (thread % 32 == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
    syncSome(1 + group, 128);
    if (thread % 32 || !w.engine) return;
#pragma unroll
    for (int i = 0; i < COUNT * 2; i += 4) {
      const int item = i + thread / 32, p = item / halves, column = (gated ? weightTile * 64 + group * 32 : weightTile * 128 + group * 64) + item % halves * 32;
      if (p < count && column < limit) storeTile(&w.out, column, m0 + p * PIECE * 8, from + p * placeOf(ENDING) + item % halves * (PIECE * 1024), a.accumulate);
    }
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  }

  static DEVICE void consume(const WideArguments& w, uint32_t tiles, uint32_t full, uint32_t empty, char* buffers, float* scales, int group, int rank) {
    const LinearArguments& a = w.a;
    const int thread = threadIdx.x % 256;
    float4* partial = (float4*)a.partial; // (segment, block of cluster, eight of rows, thread)
    float sum[N / 2], total[KEPT ? KEPT : 1];
    auto result = [&](int i) -> float& { return i < KEPT ? total[i < KEPT ? i : 0] : sum[i]; };
    const uint32_t held = shared(buffers) + group * 2 * slotBytes + thread % 128 * 16; // fours, 2 KB apart
    const int how = ending(w);
    H made(a, w.h, shared(buffers) + group * 2 * slotBytes, scales, group);
    const uint32_t out = shared(buffers) + group * 2 * slotBytes;
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
    int weightTile, rowTile, i = 0, slot = 0;
    for (; work(w, i, k); i++) {
      place(w, k.tile, rank, weightTile, rowTile);
      if (k.segment < 0) fetchScales(w, scales, rowTile * N);
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
#pragma unroll
        for (int e = 0; e < KEPT; e++) total[e] = stage > k.stage ? total[e] + sum[e] : sum[e];
        if (HELD && (stage > k.stage || end < k.end)) {
          if (stage == k.stage) { // the tile before has left
            if (thread % 32 == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
            syncSome(1 + group, 128);
          }
#pragma unroll
          for (int j = KEPT; j < N / 2; j += 16) { // four loads on their way at once
            float4 v[4];
            if (stage > k.stage) {
#pragma unroll
              for (int i = 0; i < 4; i++) asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v[i].x), "=f"(v[i].y), "=f"(v[i].z), "=f"(v[i].w) : "r"(held + (j - KEPT + 4 * i) * 512));
#pragma unroll
              for (int i = 0; i < 4; i++) {
                float* to = sum + j + 4 * i;
                to[0] = v[i].x + to[0], to[1] = v[i].y + to[1], to[2] = v[i].z + to[2], to[3] = v[i].w + to[3];
              }
            }
            if (end < k.end)
#pragma unroll
              for (int i = 0; i < 4; i++) {
                const float* from = sum + j + 4 * i;
                asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(held + (j - KEPT + 4 * i) * 512), "f"(from[0]), "f"(from[1]), "f"(from[2]), "f"(from[3]));
              }
          }
        }
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
      beginPut(group);
      if constexpr (heads) {
        made.begin(weightTile);
        for (int p = 0; p < AHEAD; p++) made.ask(p);
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
          float d[PIECE][4];
#pragma unroll
          for (int j = 0; j < PIECE; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) d[j][e] = result(4 * (p * PIECE + j) + e);
          waitCopies<AHEAD - 1>();
          made.lay(p, p % 2, d);
          made.ask(p + AHEAD);
          made.leave(p, p % 2, rowTile * N);
        }
        continue;
      }
      auto round = [&](auto ending, int first) {
        constexpr int COUNT = roundOf(ending());
        const uint32_t to = out + slot * slotBytes;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
          const int p = first + i;
          if (p >= PIECES) break;
          float d[PIECE][4];
#pragma unroll
          for (int j = 0; j < EIGHTS; j++)
            if (j / PIECE == p) {
#pragma unroll
              for (int e = 0; e < 4; e++) d[j % PIECE][e] = result(4 * j + e);
            }
          lay<ending()>(w, to + i * placeOf(ending()), scales + p * PIECE * 8, weightTile, rowTile * N + p * PIECE * 8, group, d);
        }
        leave<ending(), COUNT>(w, to, weightTile, rowTile * N + first * PIECE * 8, group, min(COUNT, PIECES - first));
        slot ^= 1;
      };
      if (how == plainEnding) {
#pragma unroll
        for (int p = 0; p < PIECES; p += roundOf(plainEnding)) round(As<plainEnding>(), p);
      } else if (how == gatedEnding) {
#pragma unroll
        for (int p = 0; p < PIECES; p += roundOf(gatedEnding)) round(As<gatedEnding>(), p);
      } else {
#pragma unroll 1
        for (int p = 0; p < PIECES; p++) round(As<anyEnding>(), p);
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
      if (first == last) continue;
      fetchScales(w, scales, rowTile * N);
      beginPut(group);
#pragma unroll 1
      for (int p = first; p < last; p++) {
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
        const int m0 = p * PIECE * 8;
        if constexpr (heads) {
          made.begin(weightTile);
          made.ask(p);
          waitCopies<0>();
          made.lay(p, slot, v);
          made.leave(p, slot, rowTile * N);
          slot ^= 1;
          continue;
        }
        auto alone = [&](auto ending) {
          lay<ending()>(w, out + slot * slotBytes, scales + m0, weightTile, rowTile * N + m0, group, v);
          leave<ending(), 1>(w, out + slot * slotBytes, weightTile, rowTile * N + m0, group, 1);
        };
        if (how == plainEnding) alone(As<plainEnding>());
        else if (how == gatedEnding) alone(As<gatedEnding>());
        else alone(As<anyEnding>());
        slot ^= 1;
      }
    }
    if (w.engine && thread % 32 == 0) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
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
    float* scales = (float*)(buffers + 4 * slotBytes); // per warpgroup
    const uint32_t full = shared(scales + 2 * N * rowWords), empty = full + 8 * STAGES;
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
      if (threadIdx.x < 288) produce(w, shared(wideMemory), full, empty, rank);
    } else {
      raiseRegisters<232>();
      consume(w, shared(wideMemory), full, empty, buffers, scales + group * N, group, rank);
    }
    if (CL > 1) syncCluster(); // no block ends while another may write to it
  }
};

#define WIDE(type, N, CL) \
  KERNEL __launch_bounds__(wideThreads, 1) __cluster_dims__(CL, 1, 1) wide_##type##_##N##_##CL(const __grid_constant__ WideArguments w) { Wide<type, N, CL>::run(w); }
#define WIDE_SEGMENTS(type, N, CL) \
  KERNEL __launch_bounds__(wideThreads, 1) __cluster_dims__(CL, 1, 1) wide_##type##_##N##_##CL##_segments(const __grid_constant__ WideArguments w) { Wide<type, N, CL, true>::run(w); }
#define WIDE_HEADS(type, N, CL) \
  KERNEL __launch_bounds__(wideThreads, 1) __cluster_dims__(CL, 1, 1) wide_##type##_##N##_##CL##_heads(const __grid_constant__ WideArguments w) { Wide<type, N, CL, true, true>::run(w); }
#define WIDES(type) \
  WIDE(type, 16, 1) WIDE(type, 32, 1) WIDE(type, 64, 1) WIDE(type, 80, 1) WIDE(type, 96, 1) WIDE(type, 112, 1) WIDE(type, 128, 1) WIDE(type, 128, 2) \
  WIDE(type, 144, 1) WIDE(type, 160, 1) WIDE(type, 176, 1) WIDE(type, 192, 1) WIDE(type, 192, 2) \
  WIDE(type, 208, 1) WIDE(type, 224, 1) WIDE(type, 240, 1) WIDE(type, 256, 1) WIDE(type, 256, 2) \
  WIDE_SEGMENTS(type, 208, 1) WIDE_SEGMENTS(type, 224, 1) WIDE_SEGMENTS(type, 240, 1) WIDE_SEGMENTS(type, 256, 1) WIDE_SEGMENTS(type, 256, 2) \
  WIDE_HEADS(type, 128, 1) WIDE_HEADS(type, 128, 2) WIDE_HEADS(type, 192, 1) WIDE_HEADS(type, 256, 1) WIDE_HEADS(type, 256, 2)
WIDES(bf16) WIDES(f16)
#endif
