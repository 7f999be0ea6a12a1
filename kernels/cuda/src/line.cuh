// line: the products of one row of a dense model's layers on Hopper.
//
//	plain: out = norm(x) · weightᵀ    gated: out = silu(norm(x) · gateᵀ) · (norm(x) · upᵀ)    added: out += x · weightᵀ
//	bare: out = x · weightᵀ, a rank's part of a sum
//
// What gemv does, in its order of sums. With one row a step is a chain of such kernels, each of
// which would have its weights in shared memory before x is there: what counts is how
// few instructions follow each other from then on. So the kernel knows its kind, the
// host divides what is to be divided, x's staging and the sums are waited for on
// barriers that only those wait on who need them, and a chunk is read while the one
// before is multiplied.
// Weights are the tensor cores' first factor: 16 rows, which are two neighbouring
// units or the two halves of a gated one; x is the second, the same in each column. A
// task is one segment of such a couple.
// Memory bound: 2·width·columns bytes. Reference: ref.Linear.
#pragma once
#include "gemv.cuh"

struct LineArguments {
  const uint4* weight;
  const void* x;     // float32 with a norm, else T
  const float* gain; // of the norm
  void* out;         // float32, with a gate T
  int columns, width; // width: outputs
  int chunks, segment, segments;
  int units;               // of 8 outputs
  int each, more;          // units of a block; blocks that have one more
  int inverse;             // more than 65536 / segments
  int stepCouples, stepSegments; // 16 tasks in both
  int slots, rings;        // couples of pieces in a warp's ring; warps that have one
  int once;                // no warp has two tasks: a ring has places for what its task has
  int stagedAt, sumsAt;    // in shared memory
  float eps;
};

enum LineKind { plainLine, gatedLine, addedLine, bareLine };

template <class T, int KIND> DEVICE void line(const LineArguments& a) {
#if __CUDA_ARCH__ >= 900
  constexpr bool gated = KIND == gatedLine, adds = KIND == addedLine, normed = KIND == plainLine || gated;
  extern __shared__ __align__(128) char memory[]; // warp × slots × two pieces; x: chunk × 4 × 16 bytes; unit (× 2) × segment × 8 sums
  __shared__ __align__(16) float squares[16];
  __shared__ uint64_t barriers[gemvSlots + 2]; // x is staged; pieces are there; sums are there
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, slots = a.slots;
  const int first = blockIdx.x * a.each + min((int)blockIdx.x, a.more), count = a.each + ((int)blockIdx.x < a.more), tasks = (gated ? count : (count + 1) / 2) * a.segments;
  uint32_t heap = shared(memory), staging = shared(barriers);
  asm volatile("" : "+r"(heap), "+r"(staging)); // kept, not made again at each use
  const uint32_t full = staging + 8 + warp * slots * 8, summing = staging + 8 + gemvSlots * 8;
  if (lane == 0) {
    if (warp < a.rings)
#pragma unroll 1
      for (int s = 0; s < slots; s++) initBarrier(full + 8 * s, 1);
    if (warp == 0) initBarrier(staging, gemvWarps), initBarrier(summing, gemvWarps);
  }
  fenceBarriers();
  __syncwarp();
  struct Task { // a warp has every 16th of the block's
    int at, couple, segment;
  };
  Task task{warp, warp * a.inverse >> 16, 0};
  task.segment = warp - task.couple * a.segments;
  auto next = [&](Task& t) {
    t.at += gemvWarps, t.couple += a.stepCouples, t.segment += a.stepSegments;
    if (t.segment >= a.segments) t.segment -= a.segments, t.couple++;
  };
  auto single = [&](const Task& t) { return !gated && 2 * t.couple + 1 == count; }; // without the other unit
  const int wide = a.once && single(task) ? pieceBytes : 2 * pieceBytes;
  const uint32_t pieces = heap + (a.once ? 2 * task.couple * a.segments * pieceBytes + task.segment * wide : warp * wide) * slots;
  Task ahead = task;
  int aheadChunk = 0, filled = 0;
  auto fetch = [&] { // the next pieces into the ring
    if (ahead.at >= tasks) return;
    const int from = ahead.segment * a.segment, length = min(a.segment, a.chunks - from), n = min(pieceChunks, length - aheadChunk);
    const bool both = !single(ahead);
    const uint32_t to = pieces + filled * wide, barrier = full + 8 * filled;
    if (lane == 0) expectBytes(barrier, n * chunkBytes << both);
    if (lane < 2 + 2 * both && lane % 2 < n / 2) { // lanes 2 and 3: the other unit
      const int row = (gated ? 2 * (first + ahead.couple) : first + 2 * ahead.couple) + lane / 2;
      copyBulk(to + lane / 2 * pieceBytes + lane % 2 * 2 * chunkBytes, a.weight + chunkAt(a.chunks, row, from + aheadChunk) + lane % 2 * pairStep, 2 * chunkBytes, barrier, streamingPolicy());
    }
    aheadChunk += n;
    if (aheadChunk == length) aheadChunk = 0, next(ahead);
    if (++filled == slots) filled = 0;
  };
#pragma unroll 1
  for (int s = 0; s < slots; s++) fetch();
  release(); // the next kernel's weights may come as soon as there is room
  float4 gains[2]; // the first of them come before x is there
  if (normed)
#pragma unroll
    for (int k = 0; k < 2; k++) gains[k] = *(const float4*)(a.gain + min(4 * thread + k * 2048, a.columns - 4));
  touch(a);
  __syncthreads(); // all see the two barriers
  dependency();
  float early = 0; // what this thread's first output is added to comes while x does
  if (adds && thread < count * 8 && first * 8 + thread < a.width) early = ((const float*)a.out)[first * 8 + thread];
  auto put = [&](int k, uint32_t at, uint32_t v) { // columns k, k + 1; at: where from column k's eight on
    const uint32_t word = heap + a.stagedAt + ((k / 32 * 4 + k % 8 / 2) * 4 + k % 32 / 16 * 2 + k % 16 / 8) * 4 + at * 16;
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(word), "r"(v) : "memory");
  };
  float part = 0;
  if (normed) { // stageWide's order
#pragma unroll 1
    for (int base = 4 * thread; base < a.columns; base += 4096) {
      float4 u[2];
#pragma unroll
      for (int k = 0; k < 2; k++) u[k] = *(const float4*)((const float*)a.x + min(base + k * 2048, a.columns - 4));
      if (base >= 4096)
#pragma unroll
        for (int k = 0; k < 2; k++) gains[k] = *(const float4*)(a.gain + min(base + k * 2048, a.columns - 4));
#pragma unroll
      for (int k = 0; k < 2; k++) {
        const int column = base + k * 2048;
        if (column >= a.columns) break;
        part = fmaf(u[k].x, u[k].x, part), part = fmaf(u[k].y, u[k].y, part), part = fmaf(u[k].z, u[k].z, part), part = fmaf(u[k].w, u[k].w, part);
        put(column, 0, pair<T>(u[k].x * gains[k].x, u[k].y * gains[k].y)), put(column, 1, pair<T>(u[k].z * gains[k].z, u[k].w * gains[k].w));
      }
    }
  } else {
    constexpr int AHEAD = 4; // loads on their way at once
#pragma unroll 1
    for (int base = 8 * thread; base < a.columns; base += AHEAD * 4096) {
      uint4 v[AHEAD];
#pragma unroll
      for (int i = 0; i < AHEAD; i++)
        if (base + i * 4096 < a.columns) v[i] = *(const uint4*)((const T*)a.x + base + i * 4096);
#pragma unroll
      for (int i = 0; i < AHEAD; i++) {
        const int column = base + i * 4096;
        if (column >= a.columns) break;
        put(column, 0, v[i].x), put(column, 1, v[i].y), put(column, 2, v[i].z), put(column, 3, v[i].w);
      }
    }
  }
  __syncwarp();
  if (lane == 0) arrive(staging);
  if (normed) {
    part = warpSum(part);
    if (lane == 0) squares[warp] = part;
  }
  waitBarrier(staging, 0);

  int slot = 0, phase = 0;
#pragma unroll 1
  for (; task.at < tasks; next(task)) {
    const int from = task.segment * a.segment;
    // A single unit stands for both: what lies after its pieces may be past the block's memory.
    uint32_t x = heap + a.stagedAt + from * 64 + lane % 4 * 16, piece = pieces + slot * wide + lane / 8 % 2 * (wide - pieceBytes) + lane / 16 * 128 + lane % 8 * 16;
    float d[4] = {0, 0, 0, 0};
    uint4 w[2][2], v[2];
    auto take = [&](int h, int c) { w[h][0] = loadMatrix(piece + c * chunkBytes), w[h][1] = loadMatrix(piece + c * chunkBytes + 256), v[h] = loadShared(x + c * 64); };
    auto use = [&](int h) { multiply<T>(d, w[h][0], v[h].x, v[h].y), multiply<T>(d, w[h][1], v[h].z, v[h].w); };
    waitBarrier(full + 8 * slot, phase);
    take(0, 0);
#pragma unroll 1
    for (int left = min(a.segment, a.chunks - from);; left -= pieceChunks) { // an even number
      take(1, 1);
      use(0);
      if (left > 2) {
        take(0, 2);
        use(1);
        take(1, 3);
        use(0);
      }
      x += pieceChunks * 64, piece += wide;
      if (++slot == slots) slot = 0, phase ^= 1, piece -= slots * wide;
      if (left > pieceChunks) {
        waitBarrier(full + 8 * slot, phase);
        take(0, 0);
      }
      use(1);
      if (ahead.at < tasks) {
        __syncwarp(); // all have read the pieces
        fetch();
      }
      if (left <= pieceChunks) break;
    }
    if (lane % 4 == 0) {
      float* s = (float*)(memory + a.sumsAt) + (2 * task.couple * a.segments + task.segment) * 8 + lane / 4;
      s[0] = d[0], s[a.segments * 8] = d[2];
    }
  }
  __syncwarp();
  if (lane == 0) arrive(summing);
  if (warp * 32 >= count * 8) return;
  waitBarrier(summing, 0);
  const float scale = normed ? inverseRoot(squares, a.columns, a.eps) : 1.f;
#pragma unroll 1
  for (int i = thread; i < count * 8; i += gemvThreads) {
    auto sumOf = [&](int half) {
      const float* s = (const float*)(memory + a.sumsAt) + ((gated ? i / 8 * 2 + half : i / 8) * a.segments) * 8 + i % 8;
      float v = s[0];
      for (int k = 1; k < a.segments; k++) v += s[k * 8];
      return v;
    };
    const int n = first * 8 + i;
    float v = scaled(sumOf(0), scale, -0.f);
    if (gated) {
      v = __fmul_rn(activate<T>(silu, v), scaled(sumOf(1), scale, -0.f));
      ((T*)a.out)[n] = narrow<T>(v);
    } else if (n < a.width) {
      if (adds) v = added(i == thread ? early : ((const float*)a.out)[n], v);
      ((float*)a.out)[n] = v;
    }
  }
#endif
}

#define LINE(type, name) \
  KERNEL __launch_bounds__(gemvThreads, 2) line_##name##_##type(const __grid_constant__ LineArguments a) { line<type, name##Line>(a); }
LINE(bf16, plain) LINE(bf16, gated) LINE(bf16, added) LINE(f16, added) LINE(bf16, bare) LINE(f16, bare)
