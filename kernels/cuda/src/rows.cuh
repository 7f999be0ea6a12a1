// Rows that move: embed, gather, convert; and what the sampler's seats remember.
//
//	embed: out[m,i] = scale · table[token[m],i] (+ positions[position[m],i])
//
// table: (vocabulary, columns) T in pack.cuh's order, out float32. Grid: one block
// per row. Memory bound: columns·(2 + 4) bytes a row. Reference: ref.Embed, ref.Gather.
#pragma once
#include "pack.cuh"

struct EmbedArguments {
  const void *table, *positions; // positions may be null
  const int *tokens, *position, *last;
  float* out;
  int columns, chunks, positionChunks, outStride, vocabulary;
  float scale;
};

// Column i of row n of a packed weight.
template <class T> DEVICE float packed(const void* w, int chunks, int columns, int n, int i) {
  if (sizeof(T) == 4) return ((const float*)w)[size_t(n) * columns + i];
  return widen(((const T*)w)[packedAt(chunks, n, i)]);
}

template <class T> DEVICE void embed(const EmbedArguments& a) {
  chainEarly();
  int m = blockIdx.x, token = a.tokens[m];
  if (token < 0) token = a.last[-1 - token]; // what was sampled last for a seat
  token = min(max(token, 0), a.vocabulary - 1);
  constexpr int AHEAD = 4; // loads on their way at once
  for (int base = threadIdx.x; base < a.columns; base += AHEAD * blockDim.x) {
    float v[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; k++) {
      const int i = min(base + k * int(blockDim.x), a.columns - 1);
      v[k] = a.scale * packed<T>(a.table, a.chunks, a.columns, token, i);
      if (a.positions) v[k] += packed<T>(a.positions, a.positionChunks, a.columns, a.position[m], i);
    }
#pragma unroll
    for (int k = 0; k < AHEAD; k++)
      if (base + k * blockDim.x < a.columns) a.out[size_t(m) * a.outStride + base + k * blockDim.x] = v[k];
  }
}
KERNEL embed_bf16(const __grid_constant__ EmbedArguments a) { embed<bf16>(a); }
KERNEL embed_f16(const __grid_constant__ EmbedArguments a) { embed<f16>(a); }
KERNEL embed_float(const __grid_constant__ EmbedArguments a) { embed<float>(a); }

struct GatherArguments {
  const void* x;
  void* out;
  const int* wanted;
  int words; // 4-byte words of a row
  int odd;   // rows are no multiple of 4 bytes: words counts 2-byte halves
};
KERNEL gather(const __grid_constant__ GatherArguments a) {
  const size_t from = size_t(a.wanted[blockIdx.x]) * a.words, to = size_t(blockIdx.x) * a.words;
  chainEarly();
  constexpr int AHEAD = 4; // loads on their way at once
  for (int base = threadIdx.x; base < a.words; base += AHEAD * blockDim.x) {
    uint32_t v[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; k++) {
      const int i = min(base + k * int(blockDim.x), a.words - 1);
      v[k] = a.odd ? ((const uint16_t*)a.x)[from + i] : ((const uint32_t*)a.x)[from + i];
    }
#pragma unroll
    for (int k = 0; k < AHEAD; k++) {
      const int i = base + k * blockDim.x;
      if (i >= a.words) break;
      if (a.odd) ((uint16_t*)a.out)[to + i] = v[k];
      else ((uint32_t*)a.out)[to + i] = v[k];
    }
  }
}

// deliver: a batch from the host's memory, over the bus, and where in there what is
// drawn goes. For few rows that is less than a copy, and no copy back is left.
struct DeliverArguments {
  const uint4* from; // pinned
  uint4* to;
  void* drawn; // pinned
  void** posted;
  int words; // of 16 bytes
};
KERNEL deliver(const __grid_constant__ DeliverArguments a) { // one block
  if (threadIdx.x == 0) *a.posted = a.drawn;
  for (int i = threadIdx.x; i < a.words; i += blockDim.x) {
    uint4 v;
    asm volatile("ld.volatile.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(a.from + i) : "memory");
    a.to[i] = v;
  }
}

struct ConvertArguments {
  const void* x;
  float* out;
  size_t count;
};
template <class T> DEVICE void widenAll(const ConvertArguments& a) {
  chain();
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < a.count; i += size_t(gridDim.x) * blockDim.x) a.out[i] = widen(((const T*)a.x)[i]);
}
KERNEL widen_bf16(const __grid_constant__ ConvertArguments a) { widenAll<bf16>(a); }
KERNEL widen_f16(const __grid_constant__ ConvertArguments a) { widenAll<f16>(a); }

// A seat's memory: counts[token] has bit 31 where the sequence has seen the token,
// below it how often the token was produced.
struct SeatArguments {
  unsigned* counts; // of this seat
  int* last;        // of this seat
  const int* tokens;
  int prompt, output, vocabulary, token;
};
constexpr unsigned seenBit = 0x80000000u;
KERNEL seat(const __grid_constant__ SeatArguments a) { // one block: clears, then counts
  chain();
  for (int i = threadIdx.x; i < a.vocabulary; i += blockDim.x) a.counts[i] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < a.prompt + a.output; i += blockDim.x) {
    int t = a.tokens[i];
    if (t < 0 || t >= a.vocabulary) continue;
    atomicOr(a.counts + t, seenBit);
    if (i >= a.prompt) atomicAdd(a.counts + t, 1u);
  }
  if (threadIdx.x == 0 && a.last) *a.last = a.prompt + a.output > 0 ? a.tokens[a.prompt + a.output - 1] : 0;
}
KERNEL feed(const __grid_constant__ SeatArguments a) {
  chain();
  *a.last = a.token;
}
