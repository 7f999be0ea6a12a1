// walk: decode attention of many rows of uneven contexts, by warps that wait for no other.
//
// As decode (decode.cuh) and bit for bit its result. A warp has a row and a KV head by
// itself, and twelve of them stand on a multiprocessor: a block of four warps lives 14
// µs with a context of 200 and needs 6 of them before its first keys are there; twelve
// that live longer cover each other's beginnings. Contexts so long that one warp would
// end last have a block's four warps, which take a chunk each in turn and hand on what
// is merged.
// Pages of 16 keys, then of their values, come through the warp's ring. A chunk's
// scores stay in registers; its values are the first factor of the second product and
// its weights the other, so that what one product leaves is what the next one takes.
// Grid: blocks of 4 warps, the first of them for one row and KV head each, the others
// for four. Longest contexts first. Groups of up to 8.
// Memory bound: 4·context·HD bytes per KV head. Reference: ref.Attention.
#pragma once
#include "bulk.cuh"
#include "decode.cuh"

constexpr int walkThreads = 128, walkWarps = 4;

template <class T, int HD> DEVICE void walk(const AttentionArguments& a) {
  using C = Chunk<T, HD, false>;
  constexpr int PIECES = HD / 8, KEYS = 32 / PIECES, TILES = HD / 16; // of 16 bytes; keys that a warp copies at once; of 16 dimensions
  constexpr int rowBytes = HD * 2, pageBytes = blockTokens * rowBytes, pitch = HD + 8;
  constexpr int RING = 512 / HD; // pages; a page's place follows from its number in its chunk
  static_assert(10 * pitch * 2 + HD * 4 <= pageBytes, "what is turned has room in a page");
  extern __shared__ __align__(128) char memory[]; // of each warp: pages of the ring; before the last of them is asked for: queries, key, value, a head; at the end: outputs
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, q = lane % 4;
  const bool shares = blockIdx.x < a.together;
  const int walk = shares ? blockIdx.x : a.together + (blockIdx.x - a.together) * walkWarps + warp, step = shares ? walkWarps : 1;
  char* pages = memory + warp * RING * pageBytes;
  float4* handed = (float4*)(memory + walkWarps * RING * pageBytes); // tile × lane: what is merged; then each lane's highest score and sum
  if (walk >= a.walks) return;
  const DecodeItem item = ((const DecodeItem*)a.items)[walk / a.kvHeads];
  const int kv = walk % a.kvHeads, m = item.row, G = a.group, position = item.position;
  const int first = a.window > 0 ? max(0, position - a.window + 1) : 0;
  const int chunk0 = first / chunkKeys, chunks = position / chunkKeys + 1 - chunk0;
  const int4* table = (const int4*)(a.tables + item.span * a.stride) + chunk0;
  const int own = shares ? warp : 0; // first chunk
  if (a.stored || own >= chunks) chain();
  if (own >= chunks) return;

  const int there = a.stored ? position + 1 : position; // keys that the cache holds
  int4 blocks = table[own], next = table[min(own + step, chunks - 1)]; // of this chunk and this warp's next one
  const int myKey = lane / PIECES, piece = lane % PIECES;
  const size_t mine = (size_t(kv) * blockTokens + myKey) * HD + piece * 8;
  const uint32_t ring = shared(pages);
  // Asks for page t % 8 of a chunk: keys, then values.
  auto ask = [&](int chunk, const int4& ids, int t) {
    const int page = t % 4, key0 = (chunk0 + chunk) * chunkKeys;
    const int b = page == 0 ? ids.x : page == 1 ? ids.y : page == 2 ? ids.z : ids.w;
    const T* from = (const T*)(t / 4 % 2 ? a.v : a.k) + size_t(max(b, 0)) * a.blockStride + mine;
    auto copy = [&](int n, int bytes) {
      const int key = n * KEYS + myKey;
      copyAsync(ring + t % RING * pageBytes + key * rowBytes + ((piece ^ (key & 7)) << 4), from + n * KEYS * HD, bytes);
    };
    if (key0 >= first && key0 + chunkKeys <= there) { // so of a chunk that is there
#pragma unroll
      for (int n = 0; n < blockTokens / KEYS; n++) copy(n, 16);
    } else if (chunk < chunks) {
#pragma unroll 1
      for (int n = 0; n < blockTokens / KEYS; n++) {
        const int p = key0 + page * blockTokens + n * KEYS + myKey;
        copy(n, p < there && p >= first ? 16 : 0);
      }
    }
    commitCopies();
  };
#pragma unroll
  for (int t = 0; t < RING - 1; t++) ask(own, blocks, t);

  T* turned = (T*)(pages + (RING - 1) * pageBytes);
  uint32_t newest[2][HD / 64]; // key, value: dimensions 2·lane and + 1, and those 64 further
  if (a.stored) {
    for (int i = lane; i < 8 * PIECES; i += 32) {
      const int g = i / PIECES, h = g < G ? a.groups[kv * G + g] : -1;
      *(uint4*)(turned + g * pitch + i % PIECES * 8) = h >= 0 ? *(const uint4*)((const T*)a.q + (size_t(m) * a.heads + h) * HD + i % PIECES * 8) : make_uint4(0, 0, 0, 0);
    }
    __syncwarp();
  } else {
    Turn<HD> turn;
    turn.prepare(a, position, lane);
    const int ours = lane < G ? a.groups[kv * G + lane] : lane == 8 || lane == 9 ? a.heads + (lane - 8) * a.kvHeads + kv : -1;
    const float* x = a.qkv + size_t(m) * (a.heads + 2 * a.kvHeads) * HD + lane;
    chain();
    auto put = [&](int g, const float (&v)[HD / 32]) {
#pragma unroll
      for (int i = 0; i < HD / 32; i++) turned[g * pitch + lane + 32 * i] = narrow<T>(v[i]);
    };
    if (turn.simple(a)) {
      float v[10][HD / 32]; // all at once, not one latency after the other
#pragma unroll
      for (int g = 0; g < 10; g++) {
        const int h = __shfl_sync(allLanes, ours, g);
#pragma unroll
        for (int i = 0; i < HD / 32; i++) v[g][i] = h >= 0 ? x[size_t(h) * HD + 32 * i] : 0.f;
      }
#pragma unroll
      for (int g = 0; g < 10; g++) {
        if (g < 9) turn.inPlace(a, v[g], g == 8);
        put(g, v[g]);
      }
    } else {
      float* head = (float*)(turned + 10 * pitch);
#pragma unroll 1
      for (int g = 0; g < 10; g++) {
        const int h = __shfl_sync(allLanes, ours, g);
        float v[HD / 32];
#pragma unroll
        for (int i = 0; i < HD / 32; i++) v[i] = h >= 0 ? x[size_t(h) * HD + 32 * i] : 0.f;
        if (h >= 0) {
          turn.apply(a, v, h, lane, head);
#pragma unroll
          for (int i = 0; i < HD / 32; i++) v[i] = head[lane + 32 * i];
          __syncwarp();
        }
        put(g, v);
      }
    }
    __syncwarp();
    const int block = ((const int*)table)[position / blockTokens - 4 * chunk0];
    const size_t to = size_t(max(block, 0)) * a.blockStride + (size_t(kv) * blockTokens + position % blockTokens) * HD + 2 * lane;
#pragma unroll
    for (int value = 0; value < 2; value++)
#pragma unroll
      for (int i = 0; i < HD / 64; i++) {
        newest[value][i] = *(const uint32_t*)(turned + (8 + value) * pitch + 2 * lane + 64 * i);
        if (block >= 0 && (chunks - 1 - own) % step == 0) *(uint32_t*)((T*)(value ? a.v : a.k) + to + 64 * i) = newest[value][i];
      }
  }
  C c;
#pragma unroll
  for (int i = 0; i < C::parts; i++) c.q[i][0] = loadMatrix(shared(turned) + (lane % 8 * pitch + lane / 8 * 8 + i * 32) * 2);

  // Lane (r, q) has scores of row r; of outputs dimensions r and r + 8 of each tile, rows 2q and 2q + 1.
  float out[TILES][4], high = -INFINITY, sum = 0;
#pragma unroll
  for (int j = 0; j < TILES; j++) out[j][0] = out[j][1] = out[j][2] = out[j][3] = 0;
  uint32_t keyAt[C::parts]; // where this lane reads keys
#pragma unroll
  for (int i = 0; i < C::parts; i++) keyAt[i] = ring + lane % 8 * rowBytes + (((4 * i + lane / 8) ^ (lane % 8)) << 4);
  const uint32_t valueRow = ring + (lane / 16 * 8 + lane % 8) * rowBytes;
#pragma unroll 1
  for (int chunk = own; chunk < chunks; chunk += step) {
    const int key0 = (chunk0 + chunk) * chunkKeys, fresh = !a.stored && chunk == chunks - 1 ? position % chunkKeys / blockTokens : -1; // page of the newest key
    auto arrived = [&](int t) {
      waitCopies<RING - 2>();
      __syncwarp(); // and all have read the page before, whose place is asked for
      const int to = t + RING - 1;
      if (to < 8) ask(chunk, blocks, to);
      else ask(chunk + step, next, to);
      if (t % 4 == fresh) {
        const int key = position % blockTokens;
#pragma unroll
        for (int i = 0; i < HD / 64; i++) *(uint32_t*)(pages + t % RING * pageBytes + key * rowBytes + (((lane / 4 + 8 * i) ^ (key & 7)) << 4) + lane % 4 * 4) = newest[t / 4][i];
        __syncwarp();
      }
    };
#pragma unroll
    for (int p = 0; p < 4; p++) {
      arrived(p);
      c.multiplyKeys(p, [&](int n, int i) { return loadMatrix(keyAt[i] + p % RING * pageBytes + n * 8 * rowBytes); });
    }
    c.weigh(a.scale, a.softcap, lane, key0 >= first && key0 + chunkKeys - 1 <= position, [&](int, int key) { return key0 + key >= first && key0 + key <= position; });
    float o[TILES][4];
#pragma unroll
    for (int j = 0; j < TILES; j++) o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0;
#pragma unroll
    for (int p = 0; p < 4; p++) {
      const uint4 w = c.weights(p);
      arrived(4 + p);
#pragma unroll
      for (int j = 0; j < TILES; j++) multiply<T>(o[j], loadMatrixTurned(valueRow + (4 + p) % RING * pageBytes + (((2 * j + lane / 8 % 2) ^ (lane % 8)) << 4)), w.x, w.z);
    }
    blocks = next, next = table[min(chunk + 2 * step, chunks - 1)];
    if (shares && chunk > 0) {
      syncSome(1 + warp, 64); // with the warp before
#pragma unroll
      for (int j = 0; j < TILES; j++) {
        const float4 v = handed[j * 32 + lane];
        out[j][0] = v.x, out[j][1] = v.y, out[j][2] = v.z, out[j][3] = v.w;
      }
      const float4 v = handed[TILES * 32 + lane];
      high = v.x, sum = v.y;
    }
    float keep, take;
    mergeFactors(high, sum, c.high[0], c.sum[0], keep, take);
    const float keeps[2] = {__shfl_sync(allLanes, keep, 8 * q), __shfl_sync(allLanes, keep, 8 * q + 4)}, takes[2] = {__shfl_sync(allLanes, take, 8 * q), __shfl_sync(allLanes, take, 8 * q + 4)};
#pragma unroll
    for (int j = 0; j < TILES; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) out[j][e] = merged(out[j][e], o[j][e], keeps[e % 2], takes[e % 2]);
    if (shares) {
      if (chunk == chunks - 1) break;
#pragma unroll
      for (int j = 0; j < TILES; j++) handed[j * 32 + lane] = make_float4(out[j][0], out[j][1], out[j][2], out[j][3]);
      handed[TILES * 32 + lane] = make_float4(high, sum, 0, 0);
      arriveSome(1 + (warp + 1) % walkWarps, 64);
    }
  }
  if (shares && (chunks - 1) % walkWarps != warp) return; // another has the last chunk
  sum = inverse(sum);
  const float scales[2] = {__shfl_sync(allLanes, sum, 8 * q), __shfl_sync(allLanes, sum, 8 * q + 4)};
  waitCopies<0>();
  __syncwarp(); // the ring is free
  T* outputs = (T*)pages;
#pragma unroll
  for (int j = 0; j < TILES; j++)
#pragma unroll
    for (int e = 0; e < 4; e++) outputs[(2 * q + e % 2) * pitch + 16 * j + r + e / 2 * 8] = narrow<T>(out[j][e] * scales[e % 2]);
  __syncwarp();
  for (int i = lane; i < G * PIECES; i += 32) {
    const int g = i / PIECES, h = a.groups[kv * G + g];
    if (h >= 0) *(uint4*)((T*)a.out + (size_t(m) * a.heads + h) * HD + i % PIECES * 8) = *(const uint4*)(outputs + g * pitch + i % PIECES * 8);
  }
}

#define WALK(type, size) \
  KERNEL __launch_bounds__(walkThreads, 3) walk_##type##_##size(const __grid_constant__ AttentionArguments a) { walk<type, size>(a); }
OF_16_BITS(WALK)
