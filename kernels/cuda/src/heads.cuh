// heads: outputs of a wide product (wide.cuh) that are the heads of queries, keys and
// values, turned and stored as they are made: what `turn` makes of float32 outputs, bit
// for bit, without writing and reading those.
//
// A tile of 128 weight rows is a head of 128 dimensions or two of 64. Its rows are 8 of
// the first half of a head and 8 of the second in turn, so that both numbers of a pair
// (Su et al. 2021, eq. 34) are in one lane. Angles come a few pieces ahead of their use;
// what is turned goes through shared memory and leaves as 16 bytes a lane.
#pragma once
#include "bulk.cuh"
#include "linear.cuh"

struct HeadArguments {
  const float2* rope;               // (position, pair): cos, sin
  const int *position, *place;      // per row; place: its slot in the cache, counted over all blocks, or -1
  void *q, *k, *v;                  // rows × heads × size; this layer's cache as in attention.cuh
  int heads, kvHeads, size, unused; // size: 64 or 128
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// A warpgroup's part of tiles of N rows, PIECE eights of rows at a time.
template <class T, int N, int PIECE, int AHEAD> struct Heads {
  static constexpr int PIECES = N / 8 / PIECE, pieceBytes = PIECE * 1024, angleBytes = PIECE * 2048;
  static constexpr int slotsBytes = 2 * pieceBytes + AHEAD * angleBytes; // shared memory: two pieces, and angles of those to come
  static constexpr int WORDS = 3; // per row, N apart for each warpgroup: scale, position, place

  const LinearArguments& a;
  const HeadArguments& h;
  uint32_t slots;
  const float* rows; // the first of WORDS
  int group, warp, lane;
  int head, pair; // of this warp; its first of 8 pairs

  DEVICE Heads(const LinearArguments& a, const HeadArguments& h, uint32_t slots, const float* rows, int group)
      : a(a), h(h), slots(slots), rows(rows), group(group), warp(threadIdx.x / 32 % 4), lane(threadIdx.x % 32) {}

  DEVICE bool value() const { return head >= h.heads + h.kvHeads; }
  DEVICE bool none() const { return head >= h.heads + 2 * h.kvHeads; }
  DEVICE int half() const { return h.size / 2; }
  DEVICE void begin(int weightTile) {
    const int per = h.size / 16, z = group * 4 + warp; // eights of half a head
    head = weightTile * (8 / per) + z / per, pair = z % per * 8;
  }
  // Has positions and places of a tile's rows on their way.
  static DEVICE void fetch(const LinearArguments& a, const HeadArguments& h, const float* rows, int m0) {
    for (int m = threadIdx.x % 128; m < N; m += 128)
#pragma unroll
      for (int i = 0; i < 2; i++)
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared(rows + (i + 1) * 2 * N + m)), "l"((i ? h.place : h.position) + min(m0 + m, a.rows - 1)) : "memory");
  }
  // Where this thread's angles of a piece are laid (eight of rows, row, thread).
  DEVICE uint32_t anglesAt(int piece) const { return slots + 2 * pieceBytes + piece % AHEAD * angleBytes + threadIdx.x % 128 * 8; }
  DEVICE void ask(int piece) const {
    if (piece < PIECES && !value()) {
      const int* positions = (const int*)(rows + 2 * N) + piece * PIECE * 8 + lane % 4 * 2;
      const float2* rope = h.rope + pair + lane / 4;
#pragma unroll
      for (int j = 0; j < PIECE; j++) {
        const int2 at = *(const int2*)(positions + j * 8);
#pragma unroll
        for (int e = 0; e < 2; e++)
          asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(anglesAt(piece) + (2 * j + e) * 1024), "l"(rope + size_t(e ? at.y : at.x) * half()) : "memory");
      }
    }
    commitCopies();
  }
  // Finishes a piece whose angles are there, as Wide::lay does: rows of 8 × 16 bytes, first
  // dimensions of the first half, then those of the second, under the swizzle.
  DEVICE void lay(int piece, int slot, float (&d)[PIECE][4]) const {
    const int q = lane % 4, m = lane % 8;
    if (a.scale || a.bias) {
      const float* bias = a.bias + head * h.size + pair + lane / 4;
      const bool biased = a.bias && !none();
      const float bias0 = biased ? bias[0] : -0.f, bias1 = biased ? bias[half()] : -0.f;
#pragma unroll
      for (int j = 0; j < PIECE; j++) {
        const float2 scale = *(const float2*)(rows + (piece * PIECE + j) * 8 + 2 * q);
#pragma unroll
        for (int e = 0; e < 4; e++) d[j][e] = scaled(d[j][e], e % 2 ? scale.y : scale.x, e < 2 ? bias0 : bias1);
      }
    }
    if (!value())
#pragma unroll
      for (int j = 0; j < PIECE; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float2 t;
          asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(t.x), "=f"(t.y) : "r"(anglesAt(piece) + (2 * j + e) * 1024));
          const float u = d[j][e], v = d[j][e + 2];
          d[j][e] = __fsub_rn(__fmul_rn(u, t.x), __fmul_rn(v, t.y)), d[j][e + 2] = __fadd_rn(__fmul_rn(v, t.x), __fmul_rn(u, t.y));
        }
    const uint32_t to = slots + slot * pieceBytes + m * 128 + ((lane / 8 % 2 * 4 + warp ^ m) << 4);
#pragma unroll
    for (int j = 0; j < PIECE; j++)
      asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(to + j * 1024), "r"(::pair<T>(d[j][0], d[j][1])), "r"(::pair<T>(d[j][2], d[j][3])) : "memory");
  }
  // Stores a piece of the tile from row m0 on, once all of the warpgroup have laid theirs.
  DEVICE void leave(int piece, int slot, int m0) const {
    const int thread = threadIdx.x % 128;
    constexpr int PER = (PIECE + 1) / 2; // rows of a thread
    int places[PER];                     // read before others may fetch the next tile's
#pragma unroll
    for (int i = 0; i < PER; i++) asm volatile("ld.shared.b32 %0, [%1];" : "=r"(places[i]) : "r"(shared(rows + 4 * N + min(piece * PIECE * 8 + i * 16 + thread / 8, N - 1))));
    syncSome(1 + group, 128);
    if (none()) return;
    const int unit = thread % 8, kv = head - h.heads;
    T* to = kv < 0 ? (T*)h.q + size_t(head) * h.size : (T*)(value() ? h.v : h.k) + size_t(value() ? kv - h.kvHeads : kv) * blockTokens * h.size;
    to += unit / 4 * half() + (pair - warp * 8) + unit % 4 * 8;
#pragma unroll
    for (int i = 0; i < PER; i++) {
      const int row = i * 16 + thread / 8, m = m0 + piece * PIECE * 8 + row;
      if (PIECE % 2 && row >= PIECE * 8 || m >= a.rows) break;
      const int place = places[i];
      const uint4 v = loadShared(slots + slot * pieceBytes + row * 128 + ((unit ^ row % 8) << 4));
      if (kv >= 0 && place < 0) continue;
      const size_t at = kv < 0 ? size_t(m) * h.heads : size_t(place / blockTokens) * h.kvHeads * blockTokens + place % blockTokens;
      *(uint4*)(to + at * h.size) = v;
    }
  }
};
#endif
