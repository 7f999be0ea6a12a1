// What tensor ranks do together, over memory that all of them can address: peers'
// over NVLink, or the same device's.
//
//	sum:    y[i] = ((part₀[i] + part₁[i]) + part₂[i]) + …, on every rank; x[i] += y[i] with it
//	gather: out = [part₀ | part₁ | …] row by row, on rank 0
//	follow: what stands at some seats on rank 0 stands there on every rank
//
// Every sum runs in rank order in float32, so its bits are those of comm.Add
// whatever the way. Small ones are pushed: each rank writes its part into boxes of all
// others, where a word is absentWord until it is written, so one that is there needs no
// flag; who takes it leaves the place as it was (TensorRT-LLM's «Lamport» sums). Larger
// ones go in two shots: each rank so sums its share of the parts, and pushes what comes
// out to everyone. What no box holds is read and written in the parts themselves, between
// two meetings.
//
// Collectives are numbered alike on all ranks, and each of them is passed only once
// all ranks have reached it. So who passes s knows that all have ended s-1: halves of
// boxes of the parity of s-1 are free again by then.
//
// Who waits looks at the clock: a rank that does not come is written to fault and
// nobody waits any more. Blocks wait for those of other ranks, so all must run at
// once: at most reduceBlocks of reduceThreads (a link wants many loads in flight), and
// where ranks share a device a quarter of them, and nothing may take a
// multiprocessor's place before the wait is over (early).
#pragma once
#include "common.cuh"

constexpr int reduceThreads = 512, reduceBlocks = 128, reduceRanks = 8;
constexpr unsigned absentWord = 0xffffffffu; // a NaN that no sum gives: the device's own is 0x7fffffff

// Signals of a rank lie in its own memory; others write them.
struct ReduceSignals {
  unsigned begun[reduceRanks][reduceBlocks], ended[reduceRanks][reduceBlocks];
  unsigned gone; // somebody did not come
};

// In memory of the host.
struct ReduceFault {
  unsigned rank, number, seen;
};

struct ReduceArguments {
  float* part[reduceRanks]; // of each rank
  float* box[reduceRanks];  // of each rank: two halves, for collectives of even and odd numbers, cut into slots
  ReduceSignals* signals[reduceRanks];
  ReduceFault* fault;
  const unsigned* base; // the number of the step's first collective
  float *x, *out; // sum: what y is added to, or null. gather: where the rows go
  size_t count;   // floats of a part
  size_t half, slot;
  unsigned long long patience;         // nanoseconds
  int columns[reduceRanks], outStride; // gather: of each rank's part
  int rank, ranks, index, early, vectors; // vectors: a gather moves four floats at a time
  int moved;                              // gather: products have written to out

  DEVICE unsigned number() const { return *base + index; }
  DEVICE float* at(int of, int n) const { return box[of] + (number() & 1) * half + n * slot; }
  DEVICE int peer(int k) const { return rank + k < ranks ? rank + k : rank + k - ranks; } // from 1 on: not all begin with the same
};

DEVICE unsigned long long nanoseconds() {
  unsigned long long t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return t;
}
DEVICE float4 loadQuad(const float* at) {
  float4 v;
  asm volatile("ld.volatile.global.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(at) : "memory");
  return v;
}
DEVICE void storeQuad(float* at, float4 v) {
  asm volatile("st.volatile.global.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(at), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}
DEVICE void raise(unsigned* at, unsigned number) { asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(at), "r"(number) : "memory"); }
DEVICE unsigned look(const unsigned* at) {
  unsigned v;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
  return v;
}

// A Wait is one thread's patience. over() tells whether it has come to its end.
struct Wait {
  const ReduceArguments& a;
  unsigned number;
  unsigned long long until = 0;
  int looks = 0;
  DEVICE bool over(int rank) {
    if (++looks % 64) return false;
    unsigned* gone = &a.signals[a.rank]->gone;
    if (*(volatile unsigned*)gone) return true;
    unsigned long long now = nanoseconds();
    if (!until) until = now + a.patience;
    if (now < until) return false;
    if (atomicExch(gone, 1u) == 0) {
      a.fault->rank = rank, a.fault->number = number;
      __threadfence_system();
      *(volatile unsigned*)&a.fault->seen = 1;
    }
    return true;
  }
};

DEVICE void begins(const ReduceArguments& a) {
  dependency();
  if (a.early) release();
}
DEVICE void ends(const ReduceArguments& a) {
  if (!a.early) release();
}

// All ranks' blocks of this index meet. What a block wrote before is seen after.
DEVICE void meet(const ReduceArguments& a, unsigned number, bool end) {
  __syncthreads();
  if (threadIdx.x < a.ranks && threadIdx.x != a.rank) {
    int peer = threadIdx.x;
    ReduceSignals *there = a.signals[peer], *here = a.signals[a.rank];
    raise(end ? &there->ended[a.rank][blockIdx.x] : &there->begun[a.rank][blockIdx.x], number);
    const unsigned* signal = end ? &here->ended[peer][blockIdx.x] : &here->begun[peer][blockIdx.x];
    Wait wait{a, number};
    while (int(look(signal) - number) < 0 && !wait.over(peer)) {}
  }
  __syncthreads();
}

// Quads of floats: the q-th four of a part, as far as it goes.
__device__ __noinline__ float4 lastQuad(const float* at, int floats) {
  auto in = [&](int i) { return i < floats ? *(const volatile float*)(at + i) : 0.f; };
  return make_float4(in(0), in(1), in(2), 0);
}
__device__ __noinline__ void putLast(float* at, int floats, float4 v) {
  at[0] = v.x;
  if (floats > 1) at[1] = v.y;
  if (floats > 2) at[2] = v.z;
}
DEVICE float4 quadOf(const float* at, size_t q, size_t count) {
  return 4 * q + 4 <= count ? loadQuad(at + 4 * q) : lastQuad(at + 4 * q, int(count - 4 * q));
}
DEVICE void putQuad(float* at, size_t q, size_t count, float4 v) {
  if (4 * q + 4 <= count)
    *(float4*)(at + 4 * q) = v;
  else
    putLast(at + 4 * q, int(count - 4 * q), v);
}
DEVICE float4 addQuads(float4 a, float4 b) { return make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w)); }

DEVICE bool here(float v) { return __float_as_uint(v) != absentWord; }
DEVICE bool here(float4 v) { return here(v.x) && here(v.y) && here(v.z) && here(v.w); }
DEVICE float4 sendable(float4 v) { // another NaN
  auto other = [](float v) { return here(v) ? v : __uint_as_float(0x7fffffffu); };
  return make_float4(other(v.x), other(v.y), other(v.z), other(v.w));
}

constexpr int quadsAhead = 2; // of a thread, on their way at once

// A thread's quads of so many: it calls each(first, …) for every group of them.
struct Quads {
  size_t end, begin = blockIdx.x * size_t(reduceThreads) + threadIdx.x, step = size_t(gridDim.x) * reduceThreads;
  template <class F> DEVICE void groups(F f) const {
#pragma unroll 1
    for (size_t first = begin; first < end; first += quadsAhead * step) f(first);
  }
  template <class F> DEVICE void each(size_t first, F f) const {
#pragma unroll
    for (int i = 0; i < quadsAhead; i++)
      if (first + i * step < end) f(i, first + i * step);
  }
};

// Takes what another rank has pushed into a slot of this one, or will.
DEVICE void take(const Quads& quads, size_t first, float* slot, float4 (&v)[quadsAhead], Wait& wait, int from) {
  quads.each(first, [&](int i, size_t q) { v[i] = loadQuad(slot + 4 * q); });
  quads.each(first, [&](int i, size_t q) {
    while (!here(v[i]) && !wait.over(from)) v[i] = loadQuad(slot + 4 * q);
    const float none = __uint_as_float(absentWord);
    storeQuad(slot + 4 * q, make_float4(none, none, none, none));
  });
}

// Slots: sender, and with TWICE after them the ranks' shares of the sum. Grid: any number
// of blocks up to reduceBlocks, the same on all ranks. Moves 4·count·(ranks-1) bytes
// out of each rank in one way of a link's latency, TWICE 8·count·(ranks-1)/ranks in two.
template <bool TWICE> DEVICE void sumPushed(const ReduceArguments& a) {
  begins(a);
  const size_t quads = (a.count + 3) / 4, share = a.slot / 4;
  auto from = [&](int r) { return TWICE ? min(share * r, quads) : 0; };
  auto shareOf = [&](int r) { return Quads{TWICE ? min(share, quads - from(r)) : quads}; };
  float* y = a.part[a.rank];
  for (int k = 1; k < a.ranks; k++) {
    const int peer = a.peer(k);
    const Quads theirs = shareOf(peer);
    float* slot = a.at(peer, a.rank);
    theirs.groups([&](size_t first) {
      float4 v[quadsAhead];
      theirs.each(first, [&](int i, size_t q) { v[i] = sendable(quadOf(y, from(peer) + q, a.count)); });
      theirs.each(first, [&](int i, size_t q) { storeQuad(slot + 4 * q, v[i]); });
    });
  }
  Wait wait{a, a.number()};
  const Quads own = shareOf(a.rank);
  const size_t start = from(a.rank);
  own.groups([&](size_t first) {
    float4 mine[quadsAhead], x[quadsAhead], sum[quadsAhead], v[quadsAhead];
    own.each(first, [&](int i, size_t q) { mine[i] = quadOf(y, start + q, a.count); });
    if (a.x) own.each(first, [&](int i, size_t q) { x[i] = quadOf(a.x, start + q, a.count); });
    for (int r = 0; r < a.ranks; r++) {
      if (r != a.rank) take(own, first, a.at(a.rank, r), v, wait, r);
      own.each(first, [&](int i, size_t) {
        const float4 next = r == a.rank ? mine[i] : v[i];
        sum[i] = r ? addQuads(sum[i], next) : next;
      });
    }
    for (int k = 1; k < a.ranks && TWICE; k++) {
      float* slot = a.at(a.peer(k), a.ranks + a.rank);
      own.each(first, [&](int i, size_t q) { storeQuad(slot + 4 * q, sum[i]); });
    }
    own.each(first, [&](int i, size_t q) { putQuad(y, start + q, a.count, sum[i]); });
    if (a.x) own.each(first, [&](int i, size_t q) { putQuad(a.x, start + q, a.count, addQuads(x[i], sum[i])); });
  });
  for (int k = 1; k < a.ranks && TWICE; k++) {
    const int peer = a.peer(k);
    const Quads theirs = shareOf(peer);
    theirs.groups([&](size_t first) {
      float4 x[quadsAhead], sum[quadsAhead];
      if (a.x) theirs.each(first, [&](int i, size_t q) { x[i] = quadOf(a.x, from(peer) + q, a.count); });
      take(theirs, first, a.at(a.rank, a.ranks + peer), sum, wait, peer);
      theirs.each(first, [&](int i, size_t q) { putQuad(y, from(peer) + q, a.count, sum[i]); });
      if (a.x) theirs.each(first, [&](int i, size_t q) { putQuad(a.x, from(peer) + q, a.count, addQuads(x[i], sum[i])); });
    });
  }
  ends(a);
}
KERNEL __launch_bounds__(reduceThreads, 2) sumOnce(const __grid_constant__ ReduceArguments a) { sumPushed<false>(a); }
KERNEL __launch_bounds__(reduceThreads) sumTwice(const __grid_constant__ ReduceArguments a) { sumPushed<true>(a); }

// Each rank sums its share of the parts and writes it to all. Moves
// 2·4·count·(ranks-1)/ranks bytes in and out of each rank.
KERNEL __launch_bounds__(reduceThreads) sumRead(const __grid_constant__ ReduceArguments a) {
  begins(a);
  const unsigned number = a.number();
  meet(a, number, false);
  const size_t quads = (a.count + 3) / 4, share = (quads + a.ranks - 1) / a.ranks;
  const size_t begin = blockIdx.x * size_t(reduceThreads) + threadIdx.x, step = size_t(gridDim.x) * reduceThreads;
  for (size_t q = share * a.rank + begin; q < min(share * (a.rank + 1), quads); q += step) {
    float4 v[reduceRanks], s;
#pragma unroll
    for (int r = 0; r < reduceRanks; r++)
      if (r < a.ranks) v[r] = quadOf(a.part[r], q, a.count);
    s = v[0];
#pragma unroll
    for (int r = 1; r < reduceRanks; r++)
      if (r < a.ranks) s = addQuads(s, v[r]);
    for (int r = 0; r < a.ranks; r++) putQuad(a.part[r], q, a.count, s);
  }
  __threadfence_system();
  meet(a, number, true);
  for (int r = 0; r < a.ranks && a.x; r++) // what the blocks of this index have summed, on all ranks
    for (size_t q = share * r + begin; q < min(share * (r + 1), quads); q += step)
      putQuad(a.x, q, a.count, addQuads(quadOf(a.x, q, a.count), quadOf(a.part[a.rank], q, a.count)));
  ends(a);
}

// Rank 0 reads all parts; the others tell that theirs are there, and wait until they
// were read. Nothing is left to do where products have written to out. Grid as above.
KERNEL __launch_bounds__(reduceThreads) gatherParts(const __grid_constant__ ReduceArguments a) {
  begins(a);
  const unsigned number = a.number();
  meet(a, number, false);
  if (a.moved) {
    ends(a);
    return;
  }
  const size_t rows = a.count / a.columns[a.rank];
  int at = 0;
  for (int r = 0; a.out && r < a.ranks; r++) {
    const int columns = a.columns[r];
    const float* part = a.part[r];
    if (a.vectors) {
      const size_t quads = columns / 4;
      for (size_t i = blockIdx.x * size_t(reduceThreads) + threadIdx.x; i < rows * quads; i += size_t(gridDim.x) * reduceThreads) {
        *(float4*)(a.out + i / quads * a.outStride + at + i % quads * 4) = loadQuad(part + 4 * i);
      }
    } else {
      for (size_t i = blockIdx.x * size_t(reduceThreads) + threadIdx.x; i < rows * columns; i += size_t(gridDim.x) * reduceThreads)
        a.out[i / columns * a.outStride + at + i % columns] = *(const volatile float*)(part + i);
    }
    at += columns;
  }
  meet(a, number, true); // all have read: parts may be written again
  ends(a);
}

struct FollowArguments : ReduceArguments {
  const int* seats; // count of them
  int* last;        // by seat: the token that was drawn last, which is never 0x7fffffff
};

// Rank 0 pushes tokens to all others; they tell that they are there. Grid: one block.
KERNEL __launch_bounds__(reduceThreads) followDrawn(const __grid_constant__ FollowArguments a) {
  begins(a);
  Wait wait{a, a.number()};
  auto take = [&](int slot, int i) {
    volatile unsigned* place = (volatile unsigned*)a.at(a.rank, slot) + i;
    unsigned word;
    while ((word = *place) == absentWord && !wait.over(slot)) {}
    *place = absentWord;
    return word;
  };
  if (a.rank == 0) {
    for (int i = threadIdx.x; i < a.count; i += reduceThreads)
      for (int k = 1; k < a.ranks; k++) *((volatile unsigned*)a.at(k, 0) + i) = a.last[a.seats[i]] ^ 0x80000000u;
    if (threadIdx.x && threadIdx.x < a.ranks) take(threadIdx.x, 0);
  } else {
    if (threadIdx.x == 0) *(volatile unsigned*)a.at(0, a.rank) = 0;
    for (int i = threadIdx.x; i < a.count; i += reduceThreads) a.last[a.seats[i]] = take(0, i) ^ 0x80000000u;
  }
  ends(a);
}
