// spread: decode attention of few rows, whose chunks are spread over a cluster.
//
// As decode (decode.cuh), but the blocks of one row and KV head form a cluster, each
// with two groups of 4 warps that take a chunk each. A block owns a share of each
// head's dimensions: all send it their chunks' results for these, into its shared
// memory, and it merges them chunk by chunk in rising order. Chunk c is taken by
// block c % C of C.
// Grid: KV heads × items × C. Memory bound: 4·context·HD bytes per KV head.
// With one row it is a chain of latencies, so what can be known before the queries
// are there is, and little code stands between them and the result.
#pragma once
#include "bulk.cuh"
#include "decode.cuh"

constexpr int spreadGroups = 2, spreadThreads = 128 * spreadGroups, spreadWarps = 4 * spreadGroups;

#if __CUDA_ARCH__ >= 900
template <class T, int HD> DEVICE void spread(const AttentionArguments& a) {
  using C = Chunk<T, HD, false>;
  constexpr int PIECES = HD / 8, KEYS = 128 / PIECES, PASSES = chunkKeys / KEYS; // of 16 bytes; keys that a group copies at once
  constexpr int rowBytes = HD * 2, tileBytes = chunkKeys * rowBytes, queryPitch = HD + 8, scorePitch = chunkKeys + 8;
  extern __shared__ __align__(128) char memory[]; // group × stages × (keys, values); chunk × head × own dimensions; chunk × head × (m, l); warp × head × chunk: factors
  __shared__ __align__(16) T queries[8 * queryPitch];
  __shared__ float scores[spreadGroups][8 * scorePitch], heads[spreadWarps * HD];
  const int thread = threadIdx.x, lane = thread % 32, r = lane / 4, q = lane % 4, w = thread / 32;
  const int group = thread / 128, t = thread % 128, warp = w % 4; // within the group
  const int kv = blockIdx.x, G = a.group, blocks = gridDim.z, rank = blockIdx.z, shift = 31 - __clz(blocks);
  const int ownShift = (HD == 128 ? 7 : 6) - shift, own = 1 << ownShift; // dimensions of each head that this block merges
  if (blocks > 1) arriveCluster();
  const DecodeItem item = ((const DecodeItem*)a.items)[blockIdx.y];
  const int m = item.row, position = item.position, first = a.window > 0 ? max(0, position - a.window + 1) : 0;
  const int chunk0 = first / chunkKeys, chunks = position / chunkKeys + 1 - chunk0;
  const int* table = a.tables + item.span * a.stride;
  const uint32_t tiles = shared(memory), results = tiles + 2 * spreadGroups * a.stages * tileBytes, stats = results + a.chunksMax * G * own * 4;
  float4* factors = (float4*)(memory + (stats - tiles) + (a.chunksMax * G + 1) / 2 * 16);
  const bool stored = a.stored, twice = a.stages == 2;
  if (stored) chain(); // the kernel before may be the one that stores

  auto syncGroup = [&] {
    if (group == 0) syncSome(1, 128);
    else syncSome(2, 128);
  };
  const int key1 = t / PIECES, piece = t % PIECES;    // of the first pass
  const uint32_t copyTo = key1 * rowBytes + ((piece ^ (key1 & 7)) << 4);
  const size_t copyFrom = (size_t(kv) * blockTokens + key1) * HD + piece * 8;
  uint32_t tile = tiles + (group * a.stages) * 2 * tileBytes; // of the next chunk to use
  auto fetch = [&](int chunk, uint32_t to, int there) { // there: keys that the cache holds
    if (chunk < chunks) {
      const int4 ids = *(const int4*)(table + (chunk0 + chunk) * 4);
      const int pages[4] = {ids.x, ids.y, ids.z, ids.w}, p = (chunk0 + chunk) * chunkKeys + key1;
#pragma unroll
      for (int n = 0; n < PASSES; n++) {
        const int at = p + n * KEYS;
        const size_t from = size_t(max(pages[n * KEYS / blockTokens], 0)) * a.blockStride + copyFrom + n * KEYS % blockTokens * HD;
        const int bytes = at < there && at >= first ? 16 : 0;
        if (at == position && there == position) continue; // this one is made here
        copyAsync(to + copyTo + n * KEYS * rowBytes, (const T*)a.k + from, bytes);
        copyAsync(to + copyTo + n * KEYS * rowBytes + tileBytes, (const T*)a.v + from, bytes);
      }
    }
    commitCopies();
  };
  auto landed = [&] {
    if (twice) waitCopies<1>();
    else waitCopies<0>();
  };
  int chunk = rank + blocks * group; // this group's
  const int step = blocks * spreadGroups;
  const int before = stored ? position + 1 : position;
  fetch(chunk, tile, before);
  if (twice) fetch(chunk + step, tile + 2 * tileBytes, before);
  const int newest = chunks - 1;
  const bool last = (newest & (blocks - 1)) == rank; // this block has the newest token
  const int merging = thread >> ownShift, mergedHead = merging < G ? a.groups[kv * G + merging] : -1;
  if (stored) {
    for (int i = thread; i < G * HD; i += spreadThreads) {
      const int h = a.groups[kv * G + i / HD];
      queries[i / HD * queryPitch + i % HD] = h >= 0 ? ((const T*)a.q)[(size_t(m) * a.heads + h) * HD + i % HD] : narrow<T>(0.f);
    }
  } else {
    // A warp turns a head: queries, then key and value of the newest token, at the
    // same time where queries leave warps idle.
    const int newer = G <= spreadWarps - 2 ? w - G : w - (spreadWarps - 2); // 0: key, 1: value
    const int head = w < G ? a.groups[kv * G + w] : -1;
    const bool makes = last && newer >= 0 && newer < 2;
    const bool simple = Turn<HD>::simple(a);
    Turn<HD> turn;
    turn.prepare(a, position, lane);
    touch(a);
    const float* x = a.qkv + size_t(m) * (a.heads + 2 * a.kvHeads) * HD + lane;
    const int b = table[position / blockTokens];
    auto take = [&](int h, auto put) { // of head h
      float v[HD / 32];
#pragma unroll
      for (int i = 0; i < HD / 32; i++) v[i] = x[h * HD + 32 * i];
      if (simple) {
        if (h < a.heads + a.kvHeads) turn.inPlace(a, v, h >= a.heads);
      } else {
        turn.apply(a, v, h, lane, heads + w * HD);
#pragma unroll
        for (int i = 0; i < HD / 32; i++) v[i] = heads[w * HD + lane + 32 * i];
        __syncwarp();
      }
#pragma unroll
      for (int i = 0; i < HD / 32; i++) put(lane + 32 * i, narrow<T>(v[i]));
    };
    chain();
    if (head >= 0) take(head, [&](int i, T v) { queries[w * queryPitch + i] = v; });
    if (makes) {
      const int key = position % chunkKeys, slot = newest >> shift; // of this block's chunks
      // Where chunks outnumber the stages its tile is filled later: then it is read from the cache.
      char* at = memory + (slot % spreadGroups * a.stages + slot / spreadGroups % a.stages) * 2 * tileBytes + newer * tileBytes + key * rowBytes;
      const bool early = slot / spreadGroups < a.stages;
      T* cached = (T*)(newer ? a.v : a.k) + size_t(max(b, 0)) * a.blockStride + (size_t(kv) * blockTokens + position % blockTokens) * HD;
      take(a.heads + newer * a.kvHeads + kv, [&](int i, T v) {
        if (early) *(T*)(at + (((i / 8) ^ (key & 7)) << 4) + i % 8 * 2) = v;
        if (b >= 0) cached[i] = v;
      });
    }
  }
  landed();
  __syncthreads();
  if (blocks > 1) waitCluster(); // all have begun
  C c;
  {
    const uint32_t from = shared(queries) + (lane % 8 * queryPitch + lane / 8 * 8) * 2;
#pragma unroll
    for (int i = 0; i < C::parts; i++) c.q[i][0] = loadMatrix(from + i * 64);
  }
  // ldmatrix: lanes of keys, with their swizzle; of values, turned, also
  const uint32_t keyRow = (warp * 16 + lane % 8) * rowBytes, keyPiece = lane / 8;
  const uint32_t valueRow = (lane % 16) * rowBytes;
#pragma unroll 1
  for (int i = 0; chunk < chunks; i++, chunk += step) {
    if (i > 0) {
      landed();
      syncGroup();
    }
    const int key0 = (chunk0 + chunk) * chunkKeys;
    c.multiplyKeys(0, [&](int n, int i) { return loadMatrix(tile + keyRow + n * 8 * rowBytes + (((4 * i + keyPiece) ^ (lane % 8)) << 4)); });
    float* mine = scores[group] + r * scorePitch;
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const int key = warp * 16 + n * 8 + 2 * q;
      float2 s = make_float2(c.s[n][0], c.s[n][1]);
      if (a.softcap > 0) s.x = score(s.x, a.scale, a.softcap), s.y = score(s.y, a.scale, a.softcap);
      if (key0 + key < first || key0 + key > position) s.x = -INFINITY;
      if (key0 + key + 1 < first || key0 + key + 1 > position) s.y = -INFINITY;
      *(float2*)(mine + key) = s;
    }
    syncGroup();
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float2 v = *(const float2*)(mine + 8 * j + 2 * q);
      c.s[j][0] = v.x, c.s[j][1] = v.y;
    }
    c.weighScores(a.softcap > 0 ? 1.f : C::exponent(a.scale));
    constexpr int NT = HD / 32; // tiles of 8 dimensions that a warp has
    float o[NT][4];
#pragma unroll
    for (int j = 0; j < NT; j++) o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0;
#pragma unroll
    for (int p = 0; p < 4; p++) {
      const uint4 weight = c.weights(p);
#pragma unroll
      for (int j = 0; j < NT; j += 2) {
        const uint4 v = loadMatrixTurned(tile + tileBytes + valueRow + p * 16 * rowBytes + (((warp * NT + j + lane / 16) ^ (lane % 8)) << 4));
        multiply<T>(o[j], weight, v.x, v.y);
        multiply<T>(o[j + 1], weight, v.z, v.w);
      }
    }
    if (r < G) {
#pragma unroll
      for (int j = 0; j < NT; j++) {
        const int dim = (warp * NT + j) * 8 + 2 * q;
        sendPair(mapped(results + (((chunk * G + r) << ownShift) + (dim & (own - 1))) * 4, dim >> ownShift), o[j][0], o[j][1]);
      }
      if (warp == 0)
        for (int to = q; to < blocks; to += 4) sendPair(mapped(stats + (chunk * G + r) * 8, to), c.high[0], c.sum[0]);
    }
    const int ahead = chunk + a.stages * step;
    if (ahead < chunks) syncGroup();
    fetch(ahead, tile, position + 1);
    if (twice) tile += i % 2 ? -2 * tileBytes : 2 * tileBytes;
  }
  waitCopies<0>();
  if (blocks > 1) arriveCluster(), waitCluster();
  else __syncthreads();
  // What a chunk keeps of the sums before it and takes of its own follows from the
  // highest scores alone: a lane a chunk. The sums then go chunk by chunk. Each warp makes
  // the factors that it needs, of one head or the few whose dimensions its lanes have.
  auto statAt = [&](int chunk, int g) { return *(const float2*)(memory + (stats - tiles) + (chunk * G + g) * 8); };
  const int heads32 = max(1, 32 >> ownShift);
  float4* mine = factors + w * heads32 * a.chunksMax;
#pragma unroll 1
  for (int base = 32 * w; base < G << ownShift; base += spreadThreads) {
    const int head0 = base >> ownShift;
    __syncwarp(); // all have read the factors before
#pragma unroll 1
    for (int k = 0; k < heads32 && head0 + k < G; k++) {
      float before = -INFINITY;
#pragma unroll 1
      for (int n = 0; n < chunks; n += 32) {
        const int at = min(n + lane, chunks - 1);
        const float2 s = statAt(at, head0 + k);
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
        if (n + lane < chunks) mine[k * a.chunksMax + at] = make_float4(none ? 1.f : power(lower - high), none ? 0.f : power(s.x - high), s.y, 0);
        before = __shfl_sync(allLanes, high, 31);
      }
    }
    __syncwarp();
    const int e = base + lane, g = e >> ownShift;
    if (e >= G << ownShift) break; // the last of them
    const int head = e == thread ? mergedHead : a.groups[kv * G + g];
    const float* result = (const float*)(memory + (results - tiles)) + e;
    const float4* f = mine + (g - head0) * a.chunksMax;
    float l = 0, u = 0;
#pragma unroll 4
    for (int n = 0; n < chunks; n++) {
      const float4 v = f[n];
      l = __fmaf_rn(v.z, v.y, __fmul_rn(l, v.x));
      u = merged(u, result[(n * G) << ownShift], v.x, v.y);
    }
    if (head >= 0) ((T*)a.out)[(size_t(m) * a.heads + head) * HD + (rank << ownShift) + (e & (own - 1))] = narrow<T>(u * inverse(l));
  }
}
#else
template <class T, int HD> DEVICE void spread(const AttentionArguments& a) {}
#endif

#define SPREAD(type, size) \
  KERNEL __launch_bounds__(spreadThreads, 2) spread_##type##_##size(const __grid_constant__ AttentionArguments a) { spread<type, size>(a); }
OF_16_BITS(SPREAD)
