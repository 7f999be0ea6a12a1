// spread: decode attention of few rows, whose chunks are spread over a cluster.
//
// As decode (decode.cuh), but the blocks of one row and KV head form a cluster, each
// with two groups of 4 warps that take a chunk each; results stay in shared memory,
// and every block merges a share of the outputs from there, chunk by chunk in rising
// order. Chunk c is slot c / C of block c % C, with C blocks.
// Grid: KV heads × items × C. Memory bound: 4·context·HD bytes per KV head.
#pragma once
#include "bulk.cuh"
#include "decode.cuh"

constexpr int spreadThreads = 256;

#if __CUDA_ARCH__ >= 900
DEVICE float loadFrom(uint32_t at, int rank) {
  float v;
  asm volatile("{.reg .b32 there;\nmapa.shared::cluster.u32 there, %1, %2;\nld.shared::cluster.f32 %0, [there];}" : "=f"(v) : "r"(at), "r"(rank) : "memory");
  return v;
}
DEVICE float2 loadPairFrom(uint32_t at, int rank) {
  float2 v;
  asm volatile("{.reg .b32 there;\nmapa.shared::cluster.u32 there, %2, %3;\nld.shared::cluster.v2.f32 {%0,%1}, [there];}" : "=f"(v.x), "=f"(v.y) : "r"(at), "r"(rank) : "memory");
  return v;
}
DEVICE void arriveCluster() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEVICE void waitCluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

template <class T, int HD> DEVICE void spread(const AttentionArguments& a) {
  using C = Chunk<T, HD, false>;
  constexpr int ROWS = 8, NT = HD / 32;
  constexpr int rowBytes = HD * 2, tileBytes = chunkKeys * rowBytes, pitch = chunkKeys + 8;
  extern __shared__ __align__(128) char memory[]; // group × stages × (keys, values); slot × head × HD results; slot × head × (m, l); factors
  __shared__ __align__(16) T queries[ROWS * HD], newest[2 * HD];
  __shared__ float scores[2][ROWS * pitch], heads[8 * HD];
  const int thread = threadIdx.x, lane = thread % 32, r = lane / 4, q = lane % 4;
  const int group = thread / 128, t = thread % 128, warp = t / 32; // within the group
  const int kv = blockIdx.x, m = a.items[blockIdx.y], G = a.group, blocks = gridDim.z, rank = blockIdx.z, shift = 31 - __clz(blocks);
  const int position = a.position[m], first = a.window > 0 ? max(0, position - a.window + 1) : 0;
  const int chunk0 = first / chunkKeys, chunks = position / chunkKeys + 1 - chunk0, slots = (a.chunksMax + blocks - 1) >> shift;
  const int* table = a.tables + a.rowSpan[m] * a.stride;
  float* results = (float*)(memory + 4 * a.stages * tileBytes);
  float* stats = results + slots * G * HD;
  float4* factors = (float4*)(stats + (slots * G + 1) / 2 * 4); // head × chunk: kept, taken, sum

  auto syncGroup = [&] {
    if (group) syncSome(1, 128);
    else syncSome(2, 128);
  };
  auto keySwizzle = [](int key) { return key & 7; };
  auto valueSwizzle = [](int key) { return HD == 128 ? (key / 2 & 1) | (key / 4 & 1) << 2 : HD == 64 ? (key / 2 & 3) << 1 : key / 2 & 3; };
  const int there = a.stored ? position + 1 : position; // keys that the cache holds
  auto chunkOf = [&](int i) { return rank + blocks * (2 * i + group); };
  auto tileOf = [&](int i) { return memory + (group * a.stages + i % a.stages) * 2 * tileBytes; };
  auto fetch = [&](int i) {
    const int chunk = chunkOf(i);
    if (chunk < chunks) {
      const int4 ids = *(const int4*)(table + (chunk0 + chunk) * 4);
      const int pages[4] = {ids.x, ids.y, ids.z, ids.w};
      char* at = tileOf(i);
#pragma unroll
      for (int n = 0; n < chunkKeys * HD / 8 / 128; n++) {
        int e = n * 128 + t, key = e / (HD / 8), piece = e % (HD / 8), p = (chunk0 + chunk) * chunkKeys + key;
        int b = p < there && p >= first ? pages[n * 128 / (HD / 8) / blockTokens] : -1;
        size_t source = size_t(max(b, 0)) * a.blockStride + (size_t(kv) * blockTokens + p % blockTokens) * HD + piece * 8;
        copyAsync(shared(at) + key * rowBytes + ((piece ^ keySwizzle(key)) << 4), (const T*)a.k + source, b >= 0 ? 16 : 0);
        copyAsync(shared(at) + tileBytes + key * rowBytes + ((piece ^ valueSwizzle(key)) << 4), (const T*)a.v + source, b >= 0 ? 16 : 0);
      }
    }
    commitCopies();
  };
  if (a.stored) chain(); // the kernel before may be the one that stores
  for (int s = 0; s < a.stages; s++) fetch(s);
  const bool last = ((chunks - 1) & (blocks - 1)) == rank; // this block has the newest token
  Turn<HD> turn;
  const int g = thread / 32; // the head that this warp turns: queries, then key and value of the newest token
  const int head = a.stored ? -1 : g < G ? a.groups[kv * G + g] : -1;
  if (!a.stored) {
    turn.prepare(a, position, lane);
    touch(a);
    chain();
  }
  if (a.stored) {
    for (int i = thread; i < ROWS * HD; i += spreadThreads) {
      int h = i / HD < G ? a.groups[kv * G + i / HD] : -1;
      queries[i] = h >= 0 ? ((const T*)a.q)[(size_t(m) * a.heads + h) * HD + i % HD] : narrow<T>(0.f);
    }
  } else {
    const float* x = a.qkv + size_t(m) * (a.heads + 2 * a.kvHeads) * HD;
    auto take = [&](int h, T* to) {
      float v[HD / 32];
#pragma unroll
      for (int i = 0; i < HD / 32; i++) v[i] = h >= 0 ? x[size_t(h) * HD + lane + 32 * i] : 0.f;
      if (h >= 0) turn.apply(a, v, h, lane, heads + g * HD);
#pragma unroll
      for (int i = lane; i < HD; i += 32) to[i] = narrow<T>(h >= 0 ? heads[g * HD + i] : 0.f);
      __syncwarp();
    };
    // Where queries leave warps idle, these take key and value at the same time.
    const int newer = G <= 6 ? g - G : g - 6; // 0: key, 1: value
    take(head, queries + g * HD);
    if (last && newer >= 0 && newer < 2) take(a.heads + newer * a.kvHeads + kv, newest + newer * HD);
  }
  __syncthreads();
  if (!a.stored && last && thread < 2 * HD / 8) { // the newest key and value into the cache
    int value = thread / (HD / 8), piece = thread % (HD / 8), b = table[position / blockTokens];
    size_t at = size_t(b) * a.blockStride + (size_t(kv) * blockTokens + position % blockTokens) * HD + piece * 8;
    if (b >= 0) *(uint4*)((T*)(value ? a.v : a.k) + at) = *(const uint4*)(newest + value * HD + piece * 8);
  }
  C c;
#pragma unroll
  for (int i = 0; i < C::parts; i++) c.q[i][0] = C::part(queries + r * HD, i, q);
#pragma unroll 1
  for (int i = 0; chunkOf(i) < chunks; i++) {
    const int chunk = chunkOf(i);
    if (a.stages == 2) waitCopies<1>();
    else waitCopies<0>();
    char* tile = tileOf(i);
    if (!a.stored && chunk == chunks - 1) {
      syncGroup(); // the place was filled with zeros by others
      if (t < 2 * HD / 8) {
        int value = t / (HD / 8), piece = t % (HD / 8), key = position % chunkKeys;
        int swizzle = value ? valueSwizzle(key) : keySwizzle(key);
        *(uint4*)(tile + value * tileBytes + key * rowBytes + ((piece ^ swizzle) << 4)) = *(const uint4*)(newest + value * HD + piece * 8);
      }
    }
    syncGroup();
    const int key0 = (chunk0 + chunk) * chunkKeys;
    const uint32_t keys = shared(tile), values = keys + tileBytes;
    c.multiplyKeys(0, [&](int n, int i) {
      int key = warp * 16 + n * 8 + lane % 8;
      return loadMatrix(keys + key * rowBytes + (((4 * i + lane / 8) ^ keySwizzle(key)) << 4));
    });
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        int key = warp * 16 + n * 8 + 2 * q + e;
        bool sees = key0 + key >= first && key0 + key <= position;
        scores[group][r * pitch + key] = !sees ? -INFINITY : a.softcap > 0 ? score(c.s[n][e], a.scale, a.softcap) : c.s[n][e];
      }
    syncGroup();
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float2 v = *(const float2*)(scores[group] + r * pitch + 8 * j + 2 * q);
      c.s[j][0] = v.x, c.s[j][1] = v.y;
    }
    c.weighScores(a.softcap > 0 ? 1.f : C::exponent(a.scale));
    float o[NT][4];
#pragma unroll
    for (int j = 0; j < NT; j++) o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0;
#pragma unroll
    for (int p = 0; p < 4; p++) {
      const uint4 w = c.weights(p);
      uint32_t v[4][NT / 2];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        int key = p * 16 + j / 2 * 8 + 2 * q + j % 2, byte = warp * NT * 2, piece = r * C::pieces + byte / 16;
        uint32_t at = values + key * rowBytes + ((piece ^ valueSwizzle(key)) << 4) + byte % 16;
        if (NT == 2) asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v[j][0]) : "r"(at) : "memory");
        else asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v[j][0]), "=r"(v[j][NT / 2 - 1]) : "r"(at) : "memory");
      }
#pragma unroll
      for (int d = 0; d < NT / 2; d++) {
        multiply<T>(o[2 * d], w, __byte_perm(v[0][d], v[1][d], 0x5410), __byte_perm(v[2][d], v[3][d], 0x5410));
        multiply<T>(o[2 * d + 1], w, __byte_perm(v[0][d], v[1][d], 0x7632), __byte_perm(v[2][d], v[3][d], 0x7632));
      }
    }
    if (r < G) {
      float* at = results + (size_t(chunk >> shift) * G + r) * HD + warp * NT;
#pragma unroll
      for (int e = 0; e < 2; e++)
#pragma unroll
        for (int j = 0; j < NT; j++) at[(2 * q + e) * (HD / 8) + j] = o[j][e];
      if (warp == 0 && q == 0) *(float2*)(stats + (size_t(chunk >> shift) * G + r) * 2) = make_float2(c.high[0], c.sum[0]);
    }
    syncGroup();
    fetch(i + a.stages);
  }
  waitCopies<0>();
  arriveCluster();
  waitCluster();
  // What a chunk keeps of the sums before it and takes of its own follows from the
  // highest scores alone: a lane a chunk. The sums then go chunk by chunk.
  if (g < G) {
    float before = -INFINITY;
    for (int n = 0; n < chunks; n += 32) {
      const int at = min(n + lane, chunks - 1);
      const float2 s = loadPairFrom(shared(stats + ((at >> shift) * G + g) * 2), at & (blocks - 1));
      float high = s.x;
#pragma unroll
      for (int o = 1; o < 32; o *= 2) {
        float u = __shfl_up_sync(allLanes, high, o);
        if (lane >= o) high = fmaxf(high, u);
      }
      high = fmaxf(high, before);
      float lower = __shfl_up_sync(allLanes, high, 1);
      if (lane == 0) lower = before;
      const bool none = s.x == -INFINITY;
      if (n + lane < chunks) factors[g * a.chunksMax + at] = make_float4(none ? 1.f : power(lower - high), none ? 0.f : power(s.x - high), s.y, 0);
      before = __shfl_sync(allLanes, high, 31);
    }
  }
  const int share = G * HD >> shift;
  constexpr int BATCH = 16; // loads on their way at once
  for (int i = thread; i < (share + 31) / 32 * 32 || i == thread; i += spreadThreads) {
    const int e = rank * share + min(i, share - 1), g = e / HD, head = a.groups[kv * G + g];
    float l = 0, u = 0;
    for (int n = 0; n < chunks; n += BATCH) {
      float o[BATCH];
#pragma unroll
      for (int k = 0; k < BATCH; k++) {
        const int at = min(n + k, chunks - 1);
        o[k] = i < share ? loadFrom(shared(results + (at >> shift) * G * HD + e), at & (blocks - 1)) : 0.f;
      }
      if (n == 0 && i == thread) __syncthreads();
#pragma unroll
      for (int k = 0; k < BATCH; k++) {
        if (n + k >= chunks) break;
        const float4 f = factors[g * a.chunksMax + n + k];
        l = __fmaf_rn(f.z, f.y, __fmul_rn(l, f.x));
        u = merged(u, o[k], f.x, f.y);
      }
    }
    if (i < share && head >= 0) ((T*)a.out)[(size_t(m) * a.heads + head) * HD + e % HD] = narrow<T>(u / l);
  }
  arriveCluster();
  waitCluster(); // others read this block's memory until here
}
#else
template <class T, int HD> DEVICE void spread(const AttentionArguments& a) {}
#endif

#define SPREAD(type, size) \
  KERNEL __launch_bounds__(spreadThreads, 2) spread_##type##_##size(const __grid_constant__ AttentionArguments a) { spread<type, size>(a); }
SPREAD(bf16, 64) SPREAD(bf16, 128) SPREAD(f16, 64) SPREAD(f16, 128)
