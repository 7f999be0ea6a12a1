// gemv: out[m,n] = finish(Σ_k norm(x)[m,k] · weight[n,k]) for up to MC rows.
//
// x: (rows, columns) float32 or T. weight: (width, columns) T in pack.cuh's order.
// Sums are fp32, in the order of linear.cuh. RMS norm (Zhang & Sennrich 2019, eq.
// 4) in place: the products take x·gain rounded to T, the sum is then multiplied
// by 1/rms, so the reduction is off the path of the first weights.
// Grid: one block per multiprocessor; each takes an equal run of units (8 weight
// rows, with a gate 8 + 8). A task is one segment of 8 weight rows; warp w takes every 16th task from the w-th and has a ring of pieces in
// shared memory, so no barrier of the block stands between a copy and its use. On
// Hopper the copy engine fills them.
// Memory bound: 2·width·columns bytes. Reference: ref.Linear.
#pragma once
#include "bulk.cuh"
#include "linear.cuh"

constexpr int gemvThreads = 512, gemvWarps = 16;
constexpr int pieceChunks = 4, pieceBytes = pieceChunks * chunkBytes;
constexpr int gemvSlots = 96;   // of a block, at most
constexpr int gemvOldSlots = 3; // of a warp, where it feeds itself
constexpr int gemvSums = 16384; // bytes of sums of segments

// The pieces of a warp's tasks, one after the other.
struct Pieces {
  const LinearArguments& a;
  int first, tasks, task, chunk = 0, length = 0;
  const uint4* source = nullptr;
  DEVICE int lengthOf(int task) const { return a.segments == 1 ? a.chunks : min(a.segment, a.chunks - task % a.segments * a.segment); }
  DEVICE bool take(const uint4*& from, int& chunks) {
    if (task >= tasks) return false;
    if (chunk == 0) {
      const int row = a.gated ? task / a.segments / 2 : task / a.segments, half = a.gated ? task / a.segments % 2 : 0;
      length = lengthOf(task);
      source = a.weight + chunkAt(a.chunks, a.gated ? 2 * (first + row) + half : first + row, task % a.segments * a.segment);
    }
    from = source + chunk / 2 * pairStep;
    chunks = min(pieceChunks, length - chunk);
    chunk += chunks;
    if (chunk == length) chunk = 0, task += gemvWarps;
    return true;
  }
};

// A warp's ring.
struct PieceRing {
  uint32_t pieces, full; // addresses; those of slot s lie s pieces or barriers on
  int slots, slot = 0, phase = 0;
  DEVICE void next() {
    if (++slot == slots) slot = 0, phase ^= 1;
  }
};

template <class T, int MC> DEVICE void gemv(const LinearArguments& a) {
  extern __shared__ __align__(128) char memory[];
  __shared__ float squares[MC][16], roots[MC];
  __shared__ uint64_t barriers[gemvSlots];
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, r = lane / 4, q = lane % 4;
  const int halves = a.gated ? 2 : 1, units = unitsOf(a), perUnit = halves * a.segments;
  const int first = unsigned(units) * blockIdx.x / gridDim.x, last = unsigned(units) * (blockIdx.x + 1) / gridDim.x;
  const int tasks = (last - first) * perUnit, rings = min(gemvWarps, (units + int(gridDim.x) - 1) / int(gridDim.x) * perUnit);
  uint32_t* staged = (uint32_t*)(memory + rings * a.slots * pieceBytes); // chunk × row × 4 × 16 bytes
  float* sums = (float*)((char*)staged + a.chunks * MC * 64);
  auto ringOf = [&](int w) {
    return PieceRing{shared(memory) + w * a.slots * pieceBytes, shared(barriers) + w * a.slots * 8, a.slots};
  };
  release(); // the next kernel's weights may come as soon as there is room
  PieceRing ring = ringOf(warp);
  Pieces work{a, first, tasks, warp}, pieces = work;
  int filled = 0;
  const uint64_t policy = streamingPolicy();
#if __CUDA_ARCH__ >= 900
  if (lane == 0 && warp < rings)
#pragma unroll 1
    for (int s = 0; s < a.slots; s++) initBarrier(ring.full + 8 * s, 1);
  fenceBarriers();
  __syncwarp();
  auto fetch = [&] {
    const uint4* source;
    int chunks;
    if (!pieces.take(source, chunks)) return;
    if (lane == 0) expectBytes(ring.full + 8 * filled, chunks * chunkBytes);
    if (lane < chunks / 2) copyBulk(ring.pieces + filled * pieceBytes + lane * 2 * chunkBytes, source + lane * pairStep, 2 * chunkBytes, ring.full + 8 * filled, policy);
    if (++filled == a.slots) filled = 0;
  };
#else
  auto fetch = [&] {
    const uint4* source;
    int chunks;
    if (pieces.take(source, chunks))
      for (int c = 0; c < chunks; c++) copyAsyncOnce(ring.pieces + filled * pieceBytes + c * chunkBytes + lane * 16, source + c / 2 * pairStep + c % 2 * 32 + lane, policy);
    commitCopies();
    if (++filled == gemvOldSlots) filled = 0;
  };
#endif
#pragma unroll 1
  for (int s = 0; s < a.slots; s++) fetch();
  float4 gains[2]; // the first of them come before x is there
  if (a.gain && a.columns % 4 == 0)
#pragma unroll
    for (int k = 0; k < 2; k++) gains[k] = *(const float4*)(a.gain + min(4 * thread + k * 2048, a.columns - 4));
  touch(a);
  dependency();
  float early[1] = {0}; // what this thread's first output is added to comes while x does
  if (thread < (last - first) * a.rows * 8) standing<T, 1>(a, thread / 8 % a.rows, (first + thread / (a.rows * 8)) * 8 + thread % 8, early);
  auto word = [&](int m, int k) { // where columns k, k+1 of row m are staged
    int inner = k % 16;
    return ((k / 32 * MC + m) * 4 + inner % 8 / 2) * 4 + k % 32 / 16 * 2 + inner / 8;
  };
  const int padded = a.chunks * 32;
#pragma unroll
  for (int m = 0; m < MC; m++) {
    float part = 0;
    if (m >= a.rows) {
      for (int k = 2 * thread; k < padded; k += 1024) staged[word(m, k)] = 0;
    } else if (a.xNarrow) {
      const T* x = (const T*)a.x + size_t(m) * a.xStride;
      if (a.xStride % 8 == 0) {
        constexpr int AHEAD = MC > 2 ? 1 : 4; // loads on their way at once
        for (int base = 8 * thread; base < padded; base += AHEAD * 4096) {
          uint4 v[AHEAD];
#pragma unroll
          for (int i = 0; i < AHEAD; i++) v[i] = base + i * 4096 < a.columns ? *(const uint4*)(x + base + i * 4096) : make_uint4(0, 0, 0, 0);
#pragma unroll
          for (int i = 0; i < AHEAD; i++) {
            if (base + i * 4096 >= padded) break;
            uint32_t* at = staged + word(m, base + i * 4096);
            at[0] = v[i].x, at[4] = v[i].y, at[8] = v[i].z, at[12] = v[i].w;
          }
        }
      } else {
        for (int k = 2 * thread; k < padded; k += 1024)
          staged[word(m, k)] = pair<T>(k < a.columns ? widen(x[k]) : 0.f, k + 1 < a.columns ? widen(x[k + 1]) : 0.f);
      }
    } else {
      part = stageWide((const float*)a.x + size_t(m) * a.xStride, a.gain, a.columns, thread, gains, [&](int k, float v0, float v1, float v2, float v3) {
        staged[word(m, k)] = pair<T>(v0, v1);
        staged[word(m, k + 2)] = pair<T>(v2, v3);
      });
      for (int k = (a.columns + 3) / 4 * 4 + 2 * thread; k < padded; k += 1024) staged[word(m, k)] = 0;
    }
    if (a.gain) {
      part = warpSum(part);
      if (lane == 0) squares[m][warp] = part;
    }
  }
  __syncthreads();

  // A group of units shares the memory for sums.
  const int group = max(1, gemvSums / (MC * 32) / perUnit) * perUnit;
  int task = warp;
  for (int base = 0; base < tasks; base += group) {
    const int end = min(base + group, tasks);
#pragma unroll 1
    for (; task < end; task += gemvWarps) {
      const int length = work.lengthOf(task);
      uint32_t x = shared(staged) + task % a.segments * a.segment * MC * 64 + lane * 16;
      float d[4] = {0, 0, 0, 0};
#pragma unroll 1
      for (int c = 0; c < length; c += pieceChunks) {
#if __CUDA_ARCH__ >= 900
        waitBarrier(ring.full + 8 * ring.slot, ring.phase);
#else
        waitCopies<gemvOldSlots - 1>();
        __syncwarp(); // lanes read what other lanes copied
#endif
        const uint32_t piece = ring.pieces + ring.slot * pieceBytes + lane * 16;
#pragma unroll
        for (int i = 0; i < pieceChunks; i += 2) { // segments are of an even number of chunks
          if (c + i >= length) break;
          const uint4 w0 = loadMatrix(piece + i * chunkBytes), w1 = loadMatrix(piece + (i + 1) * chunkBytes);
          uint4 v0 = make_uint4(0, 0, 0, 0), v1 = v0;
          if (r < MC) v0 = loadShared(x + i * MC * 64), v1 = loadShared(x + (i + 1) * MC * 64);
          multiply<T>(d, make_uint4(v0.x, 0, v0.y, 0), w0.x, w0.y);
          multiply<T>(d, make_uint4(v0.z, 0, v0.w, 0), w0.z, w0.w);
          multiply<T>(d, make_uint4(v1.x, 0, v1.y, 0), w1.x, w1.y);
          multiply<T>(d, make_uint4(v1.z, 0, v1.w, 0), w1.z, w1.w);
        }
        x += pieceChunks * MC * 64;
        __syncwarp();
        fetch();
        ring.next();
      }
      if (r < MC) *(float2*)(sums + ((task - base) * MC + r) * 8 + 2 * q) = make_float2(d[0], d[1]);
    }
    if (a.gain && base == 0 && warp == gemvWarps - 1 && lane < a.rows) roots[lane] = inverseRoot(squares[lane], a.columns, a.eps);
    __syncthreads();
    for (int i = thread; i < (end - base) / perUnit * a.rows * 8; i += gemvThreads) {
      const int u = i / (a.rows * 8), m = i / 8 % a.rows, n = (first + base / perUnit + u) * 8 + i % 8;
      const float* s = sums + (u * perUnit * MC + m) * 8 + i % 8;
      float v = s[0], up = 0;
      for (int k = 1; k < a.segments; k++) v += s[k * MC * 8];
      if (a.gated) {
        s += a.segments * MC * 8, up = s[0];
        for (int k = 1; k < a.segments; k++) up += s[k * MC * 8];
      }
      float old[1] = {early[0]};
      if (base > 0 || i > thread) standing<T, 1>(a, m, n, old);
      finish<T, 1>(a, m, n, a.gain ? roots[m] : a.scale ? a.scale[m] : 1.f, {v}, {up}, old);
    }
    if (end < tasks) __syncthreads();
  }
}

#define GEMV(type, count, blocks) \
  KERNEL __launch_bounds__(gemvThreads, blocks) gemv_##type##_##count(const __grid_constant__ LinearArguments a) { gemv<type, count>(a); }
GEMV(bf16, 1, 2) GEMV(bf16, 2, 2) GEMV(bf16, 4, 1) GEMV(bf16, 8, 1)
GEMV(f16, 1, 2) GEMV(f16, 2, 2) GEMV(f16, 4, 1) GEMV(f16, 8, 1)
