// prompt: attention of many rows of a sequence over its paged keys and values,
// causal, windowed, soft-capped (Dao et al. 2022, alg. 1, with the chunks of
// attention.cuh).
//
// q: (rows, heads, HD) T. out: (rows, heads·HD) T. Cache as in attention.cuh.
// Grid: KV heads × items, those with the longest contexts first; an item is 128 query
// rows, where query row f of a span is token f / group, head f % group of the KV head:
// heads that share keys share their loads. 8 warps of 16 query rows each.
// Bound: 4·rows·context·heads·HD operations (half with the causal mask).
// Reference: ref.Attention; bit for bit what decode gives.
#pragma once
#include "decode.cuh"

constexpr int promptRows = 128, promptThreads = 256;

template <class T, int HD> DEVICE void prompt(const AttentionArguments& a) {
  using C = Chunk<T, HD, true>;
  constexpr int pieces = C::pieces, rowBytes = HD * 2, tileBytes = chunkKeys * rowBytes;
  extern __shared__ __align__(128) char memory[]; // 2 × (keys, values)
  chain();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, q = lane % 4;
  const PromptItem item = ((const PromptItem*)a.items)[blockIdx.y];
  const int kv = blockIdx.x, f0 = item.first, row0 = item.row, count = item.count, start = item.start, G = a.group;
  const int* table = a.tables + item.span * a.stride;
  const int lastToken = min(count - 1, (f0 + promptRows - 1) / G);
  const int low = start + f0 / G, firstKey = a.window > 0 ? max(0, low - a.window + 1) : 0;
  const int chunk0 = firstKey / chunkKeys, chunkEnd = (start + lastToken) / chunkKeys + 1, written = start + count;

  auto valueSwizzle = [](int key) { return HD == 128 ? (key / 2 & 1) | (key / 4 & 1) << 2 : (key / 2 & 3) << 1; };
  auto fetch = [&](int chunk) {
    char* to = memory + (chunk & 1) * 2 * tileBytes;
    for (int i = threadIdx.x; i < chunkKeys * HD / 8; i += promptThreads) {
      int key = i / (HD / 8), piece = i % (HD / 8), at = chunk * chunkKeys + key;
      int b = at < written ? table[at / blockTokens] : -1;
      size_t from = size_t(max(b, 0)) * a.blockStride + (size_t(kv) * blockTokens + at % blockTokens) * HD + piece * 8;
      copyAsync(shared(to) + key * rowBytes + ((piece ^ (key & 7)) << 4), (const T*)a.k + from, b >= 0 ? 16 : 0);
      copyAsync(shared(to) + tileBytes + key * rowBytes + ((piece ^ valueSwizzle(key)) << 4), (const T*)a.v + from, b >= 0 ? 16 : 0);
    }
  };
  fetch(chunk0);
  commitCopies();

  C c;
  int position[2], row[2], head[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int f = f0 + warp * 16 + r + 8 * h;
    head[h] = f < count * G ? a.groups[kv * G + f % G] : -1;
    row[h] = row0 + f / G, position[h] = head[h] >= 0 ? start + f / G : -1;
#pragma unroll
    for (int i = 0; i < C::parts; i++)
      c.q[i][h] = head[h] >= 0 ? C::part((const T*)a.q + (size_t(row[h]) * a.heads + head[h]) * HD, i, q) : make_uint4(0, 0, 0, 0);
  }
  const int wf = f0 + warp * 16, warpLow = start + wf / G, warpHigh = start + min(count - 1, (wf + 15) / G);
  const bool active = wf < count * G;
  float out[pieces][8][4], high[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
  for (int h = 0; h < pieces; h++)
#pragma unroll
    for (int d = 0; d < 8; d++) out[h][d][0] = out[h][d][1] = out[h][d][2] = out[h][d][3] = 0;

  for (int chunk = chunk0; chunk < chunkEnd; chunk++) {
    waitCopies<0>();
    __syncthreads();
    if (chunk + 1 < chunkEnd) fetch(chunk + 1);
    commitCopies();
    const int key0 = chunk * chunkKeys;
    if (!active || key0 > warpHigh || (a.window > 0 && key0 + chunkKeys <= warpLow - a.window + 1)) continue;
    const uint32_t keys = shared(memory + (chunk & 1) * 2 * tileBytes), values = keys + tileBytes;
#pragma unroll
    for (int p = 0; p < 4; p++)
      c.multiplyKeys(p, [&](int n, int i) {
        int key = p * 16 + n * 8 + lane % 8;
        return loadMatrix(keys + key * rowBytes + (((4 * i + lane / 8) ^ (key & 7)) << 4));
      });
    const bool all = key0 + chunkKeys - 1 <= warpLow && (a.window <= 0 || key0 > warpHigh - a.window) && wf + 16 <= count * G;
    c.weigh(a.scale, a.softcap, lane, all, [&](int h, int key) {
      return key0 + key <= position[h] && (a.window <= 0 || key0 + key > position[h] - a.window);
    });
    float keep[2], take[2];
#pragma unroll
    for (int h = 0; h < 2; h++) mergeFactors(high[h], sum[h], c.high[h], c.sum[h], keep[h], take[h]);
#pragma unroll
    for (int h = 0; h < pieces; h++) {
      float o[8][4];
#pragma unroll
      for (int d = 0; d < 8; d++) o[d][0] = o[d][1] = o[d][2] = o[d][3] = 0;
#pragma unroll
      for (int p = 0; p < 4; p++) {
        uint4 v[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
          int key = p * 16 + j / 2 * 8 + 2 * q + j % 2;
          v[j] = loadShared(values + key * rowBytes + (((r * pieces + h) ^ valueSwizzle(key)) << 4));
        }
        C::multiplyValues(o, c.weights(p), v);
      }
#pragma unroll
      for (int d = 0; d < 8; d++)
#pragma unroll
        for (int e = 0; e < 4; e++) out[h][d][e] = merged(out[h][d][e], o[d][e], keep[e / 2], take[e / 2]);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    if (head[half] < 0) continue;
    const float scale = inverse(sum[half]);
    T* to = (T*)a.out + (size_t(row[half]) * a.heads + head[half]) * HD;
#pragma unroll
    for (int h = 0; h < pieces; h++)
#pragma unroll
      for (int e = 0; e < 2; e++)
#pragma unroll
        for (int d = 0; d < 8; d += 2)
          *(uint32_t*)(to + (2 * q + e) * (HD / 8) + h * 8 + d) = pair<T>(out[h][d][2 * half + e] * scale, out[h][d + 1][2 * half + e] * scale);
  }
}

// turn: `store` of heads of HD dimensions that are each normalised by themselves. A
// warp asks for all of its heads before it waits for anything.
// Memory bound: 6 bytes of each product of qkv.
template <class T, int HD> DEVICE void turn(const AttentionArguments& a) {
  chain();
  constexpr int PER = HD / 32, AHEAD = 6;
  const int m = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int heads = a.heads + 2 * a.kvHeads;
  const float* x = a.qkv + size_t(m) * heads * HD + lane;
  float v[AHEAD][PER];
  auto ask = [&](int first) {
#pragma unroll
    for (int n = 0; n < AHEAD; n++)
#pragma unroll
      for (int i = 0; i < PER; i++) v[n][i] = first + n * warps < heads ? x[size_t(first + n * warps) * HD + 32 * i] : 0.f;
  };
  ask(warp);
  const int position = a.position[m], block = a.tables[a.rowSpan[m] * a.stride + position / blockTokens];
  extern __shared__ float heap[];
  float* head = heap + warp * HD;
  Turn<HD> angles;
  angles.prepare(a, position, lane);
  for (int first = warp; first < heads; first += AHEAD * warps) {
    if (first > warp) ask(first);
#pragma unroll
    for (int n = 0; n < AHEAD; n++) {
      const int h = first + n * warps;
      if (h >= heads) break;
      angles.apply(a, v[n], h, lane, head);
      const bool value = h >= a.heads + a.kvHeads;
      const int kv = h - a.heads - (value ? a.kvHeads : 0);
      T* to = kv < 0 ? (T*)a.q + (size_t(m) * a.heads + h) * HD
                     : (T*)(value ? a.v : a.k) + block * a.blockStride + (size_t(kv) * blockTokens + position % blockTokens) * HD;
      if (kv < 0 || block >= 0) {
#pragma unroll
        for (int i = 2 * lane; i < HD; i += 64) *(uint32_t*)(to + i) = pair<T>(head[i], head[i + 1]);
      }
      __syncwarp();
    }
  }
}

#define PROMPT(type, size)                                                                                                            \
  KERNEL __launch_bounds__(256) turn_##type##_##size(const __grid_constant__ AttentionArguments a) { turn<type, size>(a); }       \
  KERNEL __launch_bounds__(promptThreads, 1) prompt_##type##_##size(const __grid_constant__ AttentionArguments a) { prompt<type, size>(a); }
OF_16_BITS(PROMPT)
