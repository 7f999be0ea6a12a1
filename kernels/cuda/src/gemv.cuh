// gemv: out[m,n] = finish(Σ_k norm(x)[m,k] · weight[n,k]) for up to MC rows.
//
// x: (rows, columns) float32 or T. weight: (width, columns) T in pack.cuh's order.
// Sums are fp32, in the order of linear.cuh. RMS norm (Zhang & Sennrich 2019, eq.
// 4) in place: the products take x·gain rounded to T, the sum is then multiplied
// by 1/rms, so the reduction is off the path of the first weights.
// Grid: one block per multiprocessor; each takes an equal run of units (8 weight
// rows, with a gate 8 + 8). 16 warps: warp w takes segment w % split of every
// (16 / split)-th unit and streams it through its own ring in shared memory, so no
// barrier of the block stands between a copy and its use.
// Memory bound: 2·width·columns bytes. Reference: ref.Linear.
#pragma once
#include "linear.cuh"

constexpr int gemvThreads = 512;
constexpr int gemvDepth = 10;                              // chunks in flight in each warp
constexpr int gemvRing = 16 * gemvDepth * chunkBytes;      // 80 KB
constexpr int gemvSums = 16384;                            // bytes of segment sums

template <class T, int MC> DEVICE void gemv(const LinearArguments& a) {
  extern __shared__ __align__(128) char memory[];
  __shared__ float squares[MC][16];
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, r = lane / 4, q = lane % 4;
  uint32_t ring = shared(memory) + warp * gemvDepth * chunkBytes + lane * 16;
  uint32_t* staged = (uint32_t*)(memory + gemvRing);       // chunk × row × 4 × 16 bytes
  float* sums = (float*)(memory + gemvRing + a.chunks * MC * 64);
  int split = 1;
  while (split < a.segments) split *= 2;
  const int segment = warp % split, lanes = 16 / split, halves = a.gated ? 2 : 1, units = unitsOf(a);
  const int first = (long long)units * blockIdx.x / gridDim.x, last = (long long)units * (blockIdx.x + 1) / gridDim.x;
  const int from = segment * a.segment, length = min(a.segment, a.chunks - from);
  const uint64_t policy = streamingPolicy();

  int unit = length > 0 ? first + warp / split : last, half = 0, chunk = 0; // next to fetch
  const uint4* source = a.weight + (size_t(unit) * a.chunks + from) * 32 + lane;
  auto fetch = [&](int slot) {
    if (unit < last) {
      copyAsyncOnce(ring + slot * chunkBytes, source + chunk * 32, policy);
      if (++chunk == length) {
        chunk = 0;
        if (++half == halves) half = 0, unit += lanes;
        source = a.weight + (size_t(unit + half * units) * a.chunks + from) * 32 + lane;
      }
    }
    commitCopies();
  };
#pragma unroll
  for (int i = 0; i < gemvDepth; i++) fetch(i);

  // A group of units shares the memory for sums.
  const int perUnit = halves * split * MC * 8, group = max(1, gemvSums / 4 / perUnit / lanes) * lanes;
  chain();
  float early[1] = {0}; // what this thread's first output is added to comes while x does
  if (thread < (min(first + group, last) - first) * a.rows * 8) standing<T, 1>(a, thread / 8 % a.rows, (first + thread / (a.rows * 8)) * 8 + thread % 8, early);
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
      part = stageWide((const float*)a.x + size_t(m) * a.xStride, a.gain, a.columns, thread, [&](int k, float v0, float v1, float v2, float v3) {
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

  const uint32_t x = shared(staged) + from * MC * 64 + lane * 16;
  int slot = 0;
  for (int base = first; base < last; base += group) {
    const int end = min(base + group, last);
    if (length > 0) {
      for (int u = base + warp / split; u < end; u += lanes) {
        for (int h = 0; h < halves; h++) {
          float d[4] = {0, 0, 0, 0};
#pragma unroll 2
          for (int c = 0; c < length; c++) {
            waitCopies<gemvDepth - 1>();
            __syncwarp(); // lanes read what other lanes copied
            uint4 w = loadMatrix(ring + slot * chunkBytes), v = make_uint4(0, 0, 0, 0);
            if (r < MC) v = loadShared(x + c * MC * 64);
            multiply<T>(d, make_uint4(v.x, 0, v.y, 0), w.x, w.y);
            multiply<T>(d, make_uint4(v.z, 0, v.w, 0), w.z, w.w);
            fetch(slot);
            if (++slot == gemvDepth) slot = 0;
          }
          if (r < MC) *(float2*)(sums + ((((u - base) * halves + h) * split + segment) * MC + r) * 8 + 2 * q) = make_float2(d[0], d[1]);
        }
      }
    }
    __syncthreads();
    for (int i = thread; i < (end - base) * a.rows * 8; i += gemvThreads) {
      const int u = i / (a.rows * 8), m = i / 8 % a.rows;
      const float* s = sums + (u * halves * split * MC + m) * 8 + i % 8;
      float v = s[0], up = 0;
      for (int k = 1; k < a.segments; k++) v += s[k * MC * 8];
      if (a.gated) {
        s += split * MC * 8, up = s[0];
        for (int k = 1; k < a.segments; k++) up += s[k * MC * 8];
      }
      float scale = a.gain ? inverseRoot(squares[m], a.columns, a.eps) : a.scale ? a.scale[m] : 1.f;
      float old[1] = {early[0]};
      if (base > first || i > thread) standing<T, 1>(a, m, (base + u) * 8 + i % 8, old);
      finish<T, 1>(a, m, (base + u) * 8 + i % 8, scale, {v}, {up}, old);
    }
    __syncthreads();
  }
  waitCopies<0>();
}

#define GEMV(type, count) \
  KERNEL __launch_bounds__(gemvThreads, 1) gemv_##type##_##count(const __grid_constant__ LinearArguments a) { gemv<type, count>(a); }
GEMV(bf16, 1) GEMV(bf16, 2) GEMV(bf16, 4) GEMV(bf16, 8)
GEMV(f16, 1) GEMV(f16, 2) GEMV(f16, 4) GEMV(f16, 8)
