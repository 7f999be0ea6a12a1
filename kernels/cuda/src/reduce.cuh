// What tensor ranks do together, over memory that all of them can address: peers'
// over NVLink, or the same device's.
//
//	sum:    y[i] = ((part₀[i] + part₁[i]) + part₂[i]) + …, on every rank; x[i] += y[i] with it
//	gather: out = [part₀ | part₁ | …] row by row, on rank 0
//
// Every sum runs in rank order in float32, so its bits are those of comm.Add
// whatever the way. Small ones are pushed: each rank writes its part into all
// others' boxes in words that carry the number of this collective, so a word that is
// there is whole and needs no flag (NCCL's LL form). Large ones in two shots: a rank
// reads its share of all parts, adds, and writes the sum to everyone.
//
// Collectives are numbered alike on all ranks, and each of them is passed only once
// all ranks have reached it. So who passes s knows that all have ended s-1: boxes of
// the parity of s are free by then.
//
// Who waits looks at the clock: a rank that does not come is written to fault and
// nobody waits any more. Blocks wait for those of other ranks, so all must run at
// once: at most reduceBlocks of reduceThreads (a link wants many loads in flight), and
// where ranks share a device a quarter of them, and nothing may take a
// multiprocessor's place before the wait is over (early).
#pragma once
#include "common.cuh"

constexpr int reduceThreads = 512, reduceBlocks = 128, reduceRanks = 8;

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
  uint4* box[reduceRanks];  // of each rank: parity × sender × boxWords
  ReduceSignals* signals[reduceRanks];
  ReduceFault* fault;
  const unsigned* base; // the number of the step's first collective
  float *x, *out;       // sum: what y is added to, or null. gather: where the rows go
  size_t count;         // floats of a part
  size_t boxWords;
  unsigned long long patience;            // nanoseconds
  int columns[reduceRanks], outStride;    // gather: of each rank's part
  int rank, ranks, index, early, vectors; // vectors: four floats at a time
};

DEVICE unsigned long long nanoseconds() {
  unsigned long long t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return t;
}
DEVICE void storeWord(uint4* at, float a, float b, unsigned number) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1,%2,%3,%2};" ::"l"(at), "r"(__float_as_uint(a)), "r"(number), "r"(__float_as_uint(b)) : "memory");
}
DEVICE uint4 loadWord(const uint4* at) {
  uint4 v;
  asm volatile("ld.volatile.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at) : "memory");
  return v;
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

DEVICE void reduceEnds(const ReduceArguments& a) {
  if (!a.early) release();
}

// Grid: any number of blocks up to reduceBlocks, the same on all ranks. Moves
// 2·4·count·(ranks-1) bytes out of each rank in one way of a link's latency.
KERNEL __launch_bounds__(reduceThreads) sumPushed(const __grid_constant__ ReduceArguments a) {
  dependency();
  if (a.early) release();
  const unsigned number = *a.base + a.index;
  const size_t words = (a.count + 1) / 2, half = (number & 1) * size_t(a.ranks) * a.boxWords;
  const size_t first = blockIdx.x * size_t(reduceThreads) + threadIdx.x, step = size_t(gridDim.x) * reduceThreads;
  float* y = a.part[a.rank];
  for (size_t w = first; w < words; w += step) {
    float lo = y[2 * w], hi = 2 * w + 1 < a.count ? y[2 * w + 1] : 0.f;
    for (int k = 1; k < a.ranks; k++) { // not all to the same rank at once
      int peer = a.rank + k < a.ranks ? a.rank + k : a.rank + k - a.ranks;
      storeWord(a.box[peer] + half + a.rank * a.boxWords + w, lo, hi, number);
    }
  }
  Wait wait{a, number};
  for (size_t w = first; w < words; w += step) {
    bool pair = 2 * w + 1 < a.count;
    float lo = y[2 * w], hi = pair ? y[2 * w + 1] : 0.f, sums[2];
    for (int r = 0; r < a.ranks; r++) {
      float v[2] = {lo, hi};
      if (r != a.rank) {
        const uint4* at = a.box[a.rank] + half + r * a.boxWords + w;
        uint4 u = loadWord(at);
        while ((u.y != number || u.w != number) && !wait.over(r)) u = loadWord(at);
        v[0] = __uint_as_float(u.x), v[1] = __uint_as_float(u.z);
      }
      for (int i = 0; i < 2; i++) sums[i] = r ? __fadd_rn(sums[i], v[i]) : v[i];
    }
    y[2 * w] = sums[0];
    if (a.x) a.x[2 * w] = __fadd_rn(a.x[2 * w], sums[0]);
    if (pair) {
      y[2 * w + 1] = sums[1];
      if (a.x) a.x[2 * w + 1] = __fadd_rn(a.x[2 * w + 1], sums[1]);
    }
  }
  reduceEnds(a);
}

// Each rank sums its share of the parts and writes it to all. Moves
// 2·4·count·(ranks-1)/ranks bytes in and out of each rank.
KERNEL __launch_bounds__(reduceThreads) sumShared(const __grid_constant__ ReduceArguments a) {
  dependency();
  if (a.early) release();
  const unsigned number = *a.base + a.index;
  meet(a, number, false);
  const size_t share = (a.count + 4 * a.ranks - 1) / (4 * a.ranks) * 4;
  const size_t lo = share * a.rank, hi = min(lo + share, a.count); // past the end: none
  const size_t first = lo / 4 + blockIdx.x * size_t(reduceThreads) + threadIdx.x, step = size_t(gridDim.x) * reduceThreads;
  for (size_t q = first; 4 * q < hi; q += step) {
    if (a.vectors && 4 * q + 4 <= hi) {
      float4 v[reduceRanks], s;
#pragma unroll
      for (int r = 0; r < reduceRanks; r++)
        if (r < a.ranks) {
          uint4 u = loadWord((const uint4*)a.part[r] + q);
          v[r] = *(float4*)&u;
        }
      s = v[0];
#pragma unroll
      for (int r = 1; r < reduceRanks; r++)
        if (r < a.ranks) s.x = __fadd_rn(s.x, v[r].x), s.y = __fadd_rn(s.y, v[r].y), s.z = __fadd_rn(s.z, v[r].z), s.w = __fadd_rn(s.w, v[r].w);
      for (int r = 0; r < a.ranks; r++) ((float4*)a.part[r])[q] = s;
      continue;
    }
    for (size_t i = 4 * q; i < min(4 * q + 4, hi); i++) {
      float s = *(volatile float*)(a.part[0] + i);
      for (int r = 1; r < a.ranks; r++) s = __fadd_rn(s, *(volatile float*)(a.part[r] + i));
      for (int r = 0; r < a.ranks; r++) a.part[r][i] = s;
    }
  }
  __threadfence_system();
  meet(a, number, true);
  if (a.x) // what the blocks of this index have summed, on all ranks
    for (int r = 0; r < a.ranks; r++) {
      const size_t begin = share * r / 4 + blockIdx.x * size_t(reduceThreads) + threadIdx.x, end = min(share * (r + 1), a.count);
      for (size_t q = begin; 4 * q < end; q += step) {
        if (a.vectors && 4 * q + 4 <= end) {
          uint4 u = loadWord((const uint4*)a.part[a.rank] + q);
          float4 s = *(float4*)&u, x = ((float4*)a.x)[q];
          ((float4*)a.x)[q] = make_float4(__fadd_rn(x.x, s.x), __fadd_rn(x.y, s.y), __fadd_rn(x.z, s.z), __fadd_rn(x.w, s.w));
          continue;
        }
        for (size_t i = 4 * q; i < min(4 * q + 4, end); i++) a.x[i] = __fadd_rn(a.x[i], *(volatile float*)(a.part[a.rank] + i));
      }
    }
  reduceEnds(a);
}

// Rank 0 reads all parts; the others tell that theirs are there, and wait until they
// were read. Grid as above.
KERNEL __launch_bounds__(reduceThreads) gatherParts(const __grid_constant__ ReduceArguments a) {
  dependency();
  if (a.early) release();
  const unsigned number = *a.base + a.index;
  meet(a, number, false);
  const size_t rows = a.count / a.columns[a.rank];
  int at = 0;
  for (int r = 0; a.out && r < a.ranks; r++) {
    const int columns = a.columns[r];
    const float* part = a.part[r];
    if (a.vectors) {
      const size_t quads = columns / 4;
      for (size_t i = blockIdx.x * size_t(reduceThreads) + threadIdx.x; i < rows * quads; i += size_t(gridDim.x) * reduceThreads) {
        uint4 u = loadWord((const uint4*)part + i);
        *(uint4*)(a.out + i / quads * a.outStride + at + i % quads * 4) = u;
      }
    } else {
      for (size_t i = blockIdx.x * size_t(reduceThreads) + threadIdx.x; i < rows * columns; i += size_t(gridDim.x) * reduceThreads)
        a.out[i / columns * a.outStride + at + i % columns] = *(const volatile float*)(part + i);
    }
    at += columns;
  }
  meet(a, number, true); // all have read: parts may be written again
  reduceEnds(a);
}
