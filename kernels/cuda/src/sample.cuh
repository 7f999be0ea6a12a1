// Sampling: adjust, draw, score. The order is vLLM's, as in ref.Sampler: bias;
// bans and mask; penalties; temperature; min_p; top_k; top_p; then the draw by
// inverse CDF in the order of token ids. Of equal logits the lower id comes first.
//
// logits: (rows, vocabulary) float32. Weights exp(logit - highest) are summed as
// integers of 2⁻⁴⁴, so sums do not depend on their order and a draw is the same in
// every batch. Grid: one block of 1024 threads per sample row; where rows are few
// draw has a cluster of blocks a row, which divide the search for the highest logit.
// Memory bound: 4·vocabulary bytes a pass; greedy takes one pass, top-k and top-p
// about four each. Reference: ref.Sampler.
#pragma once
#include "bulk.cuh"
#include "rows.cuh"

constexpr int sampleThreads = 1024, sampleBuckets = 2048;

struct SampleRow { // mirrors sample.go
  int row, seat, target;
  float temperature;
  int topK;
  float topP, minLog; // minLog: log(min_p), -inf without
  float presence, frequency, repetition;
  int biasAt, biases, bannedAt, banned, maskAt, maskWords; // in lists; maskWords < 0: no mask
  unsigned uniform;                                        // 24 random bits
  int top;                                                 // < 0: no logprobs
  int topAt;                                               // where its best tokens go
  int flags;                                               // 1: adjusted, 2: greedy, 4: penalties
};
struct Drawn {
  int token;
  float logprob;
  int rank;
  int unused;
};
struct TopToken {
  int token;
  float logprob;
};
struct SampleArguments {
  const float* logits;
  float* adjusted; // sample row × vocabulary
  const SampleRow* rows;
  const int* lists; // bias pairs, banned tokens, mask words
  unsigned* counts; // seat × vocabulary
  int* last;        // per seat
  Drawn* drawn;
  TopToken* top;
  Drawn* const* posted; // where the host reads what is drawn
  int vocabulary, stride, seats;
};

DEVICE const float* logitsOf(const SampleArguments& a, const SampleRow& s) {
  return s.flags & 1 ? a.adjusted + size_t(blockIdx.x) * a.vocabulary : a.logits + size_t(s.row) * a.stride;
}

KERNEL __launch_bounds__(sampleThreads) adjust(const __grid_constant__ SampleArguments a) {
  chain();
  const SampleRow s = a.rows[blockIdx.x];
  if (!(s.flags & 1)) return;
  const float* in = a.logits + size_t(s.row) * a.stride;
  float* x = a.adjusted + size_t(blockIdx.x) * a.vocabulary;
  for (int t = threadIdx.x; t < a.vocabulary; t += sampleThreads) x[t] = in[t];
  __syncthreads();
  if (threadIdx.x == 0) // a token may stand in the list twice
    for (int i = 0; i < s.biases; i++) {
      int t = a.lists[s.biasAt + 2 * i];
      if (t >= 0 && t < a.vocabulary) x[t] += __int_as_float(a.lists[s.biasAt + 2 * i + 1]);
    }
  __syncthreads();
  for (int i = threadIdx.x; i < s.banned; i += sampleThreads) {
    int t = a.lists[s.bannedAt + i];
    if (t >= 0 && t < a.vocabulary) x[t] = -INFINITY;
  }
  __syncthreads();
  const unsigned* counts = a.counts + size_t(max(s.seat, 0)) * a.vocabulary;
  for (int t = threadIdx.x; t < a.vocabulary; t += sampleThreads) {
    float v = x[t];
    if (s.maskWords >= 0 && (t / 32 >= s.maskWords || !(a.lists[s.maskAt + t / 32] >> t % 32 & 1))) v = -INFINITY;
    if (s.flags & 4) {
      unsigned n = counts[t];
      if (n & seenBit) { // Keskar et al. 2019, §4.1
        if (s.repetition > 0) v = v > 0 ? __fdiv_rn(v, s.repetition) : __fmul_rn(v, s.repetition);
        n &= ~seenBit;
        if (n) v = __fsub_rn(__fsub_rn(v, __fmul_rn(s.frequency, (float)n)), s.presence);
      }
    }
    x[t] = v;
  }
}

// e^x for x ≤ 0: ref's polynomial (Cephes expf), operation by operation.
DEVICE float weightOf(float x) {
  if (!(x >= -87.3f)) return 0;
  float n = (float)(int)__fadd_rn(__fmul_rn(x, 1.44269504088896341f), -0.5f);
  x = __fsub_rn(x, __fmul_rn(n, 0.693359375f));
  x = __fsub_rn(x, __fmul_rn(n, -2.12194440e-4f));
  float p = 1.9875691500e-4f;
  p = __fadd_rn(__fmul_rn(p, x), 1.3981999507e-3f);
  p = __fadd_rn(__fmul_rn(p, x), 8.3334519073e-3f);
  p = __fadd_rn(__fmul_rn(p, x), 4.1665795894e-2f);
  p = __fadd_rn(__fmul_rn(p, x), 1.6666665459e-1f);
  p = __fadd_rn(__fmul_rn(p, x), 5.0000001201e-1f);
  p = __fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, x), x), x), 1.f);
  return __fmul_rn(p, __int_as_float((int(n) + 127) << 23));
}
typedef unsigned long long mass; // 2⁻⁴⁴
DEVICE mass massOf(float weight) { return (mass)(weight * 17592186044416.f); }

// An order-preserving integer of a float that is a number.
DEVICE unsigned keyOf(float v) {
  unsigned u = __float_as_uint(v + 0.f); // -0 is 0
  return u >> 31 ? ~u : u | 0x80000000u;
}

// Calls f(token, logit) for every token, each thread in rising order; eight
// loads are on their way at a time.
template <class F> DEVICE void everyToken(const float* x, int vocabulary, F f) {
  for (int base = threadIdx.x; base < vocabulary; base += 8 * sampleThreads) {
    float u[8];
#pragma unroll
    for (int k = 0; k < 8; k++) u[k] = base + k * sampleThreads < vocabulary ? x[base + k * sampleThreads] : -INFINITY;
#pragma unroll
    for (int k = 0; k < 8; k++)
      if (base + k * sampleThreads < vocabulary) f(base + k * sampleThreads, u[k]);
  }
}

// The same by fours, where the row begins at a multiple of 16 bytes: for passes that
// are bound by memory.
template <class F> DEVICE void everyFour(const float* x, int vocabulary, F f) {
  if (vocabulary % 4 == 0 && (size_t)x % 16 == 0) {
    const float4* four = (const float4*)x;
    const int fours = vocabulary / 4;
    for (int base = threadIdx.x; base < fours; base += 4 * sampleThreads) {
      float4 u[4];
#pragma unroll
      for (int k = 0; k < 4; k++) u[k] = base + k * sampleThreads < fours ? four[base + k * sampleThreads] : make_float4(0, 0, 0, 0);
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const int t = 4 * (base + k * sampleThreads);
        if (t < vocabulary) f(t, u[k].x), f(t + 1, u[k].y), f(t + 2, u[k].z), f(t + 3, u[k].w);
      }
    }
    return;
  }
  everyToken(x, vocabulary, f);
}

// The highest value of the row, and of those the lowest token; -1 where all are
// -inf or not a number. With below, only what comes after (value, token) in order.
DEVICE void highestOf(const float* x, int vocabulary, float& value, int& token, bool below, float lastValue, int lastToken) {
  __shared__ float values[32];
  __shared__ int tokens[32];
  float v = -INFINITY;
  int t = -1;
  everyFour(x, vocabulary, [&](int i, float u) {
    if (below && !(u < lastValue || (u == lastValue && i > lastToken))) return;
    if (u > v) v = u, t = i;
  });
  auto better = [](float u, int j, float v, int t) { return j >= 0 && (t < 0 || u > v || (u == v && j < t)); };
  for (int o = 16; o; o >>= 1) {
    float u = __shfl_xor_sync(allLanes, v, o);
    int j = __shfl_xor_sync(allLanes, t, o);
    if (better(u, j, v, t)) v = u, t = j;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = v, tokens[threadIdx.x / 32] = t;
  __syncthreads();
  v = values[threadIdx.x % 32], t = tokens[threadIdx.x % 32];
  for (int o = 16; o; o >>= 1) {
    float u = __shfl_xor_sync(allLanes, v, o);
    int j = __shfl_xor_sync(allLanes, t, o);
    if (better(u, j, v, t)) v = u, t = j;
  }
  value = v, token = t;
}

// The same by all blocks of a cluster along z. The first has the answer; false tells
// the others that they are done.
DEVICE bool highestOfCluster(const float* x, int vocabulary, float& value, int& token) {
#if __CUDA_ARCH__ >= 900
  const int blocks = gridDim.z, rank = blockIdx.z;
  if (blocks > 1) {
    __shared__ __align__(8) float found[2 * 8]; // of each block: value, token
    arriveCluster();
    const int share = (vocabulary + 4 * blocks - 1) / (4 * blocks) * 4, from = min(rank * share, vocabulary);
    highestOf(x + from, min(share, vocabulary - from), value, token, false, 0, 0);
    waitCluster(); // all have begun
    if (threadIdx.x == 0) sendPair(mapped(shared(found + 2 * rank), 0), value, __int_as_float(token < 0 ? -1 : token + from));
    arriveCluster();
    if (rank > 0) return false;
    waitCluster();
    token = -1;
    for (int b = 0; b < blocks; b++) { // of equal ones the first, whose tokens are lower
      const int t = __float_as_int(found[2 * b + 1]);
      if (t >= 0 && (token < 0 || found[2 * b] > value)) value = found[2 * b], token = t;
    }
    return true;
  }
#endif
  highestOf(x, vocabulary, value, token, false, 0, 0);
  return true;
}

template <class V> DEVICE V blockTotal(V v) {
  __shared__ V sums[32];
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(allLanes, v, o);
  __syncthreads();
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
  __syncthreads();
  v = 0;
  for (int w = 0; w < 32; w++) v += sums[w];
  __syncthreads();
  return v;
}

// What may be drawn: logits over the temperature that are at least `lowest` and
// come no later than (edge, token) in the order of selection.
struct Candidates {
  const float* x;
  int vocabulary;
  float temperature, highest, lowest;
  unsigned edge;
  int token;
  DEVICE bool has(int t, float& v, unsigned& key) const { return has(t, x[t], v, key); }
  DEVICE bool has(int t, float u, float& v, unsigned& key) const {
    if (!(u > -INFINITY)) return false;
    v = fminf(__fdiv_rn(u, temperature), 3.402823466e38f);
    if (!(v >= lowest)) return false;
    key = keyOf(v);
    return key > edge || (key == edge && t <= token);
  }
};

// Narrows c to the shortest prefix, highest first, that counts `count` or weighs `goal`.
DEVICE void select(Candidates& c, long long count, mass goal) {
  __shared__ unsigned counts[sampleBuckets], low[sampleBuckets], high[sampleBuckets], least, most;
  __shared__ int edge;
  __shared__ long long countLeft;
  __shared__ mass goalLeft;
  unsigned from = 0, to = 0xffffffffu; // keys of the bucket in which the prefix ends
  const float width = 100.f / (sampleBuckets - 1);
  for (int round = 0;; round++) {
    const unsigned step = (to - from) / sampleBuckets + 1;
    for (int i = threadIdx.x; i < sampleBuckets; i += sampleThreads) counts[i] = low[i] = high[i] = 0;
    __syncthreads();
    auto bucketOf = [&](float v, unsigned key) { return round == 0 ? (int)fminf((c.highest - v) / width, sampleBuckets - 1) : (int)((to - key) / step); };
    everyToken(c.x, c.vocabulary, [&](int t, float u) {
      float v;
      unsigned key;
      if (!c.has(t, u, v, key) || key < from || key > to) return;
      int b = bucketOf(v, key);
      atomicAdd(counts + b, 1u);
      mass w = massOf(weightOf(v - c.highest));
      if (w) {
        unsigned lo = (unsigned)w, old = atomicAdd(low + b, lo), hi = (unsigned)(w >> 32) + (old + lo < lo);
        if (hi) atomicAdd(high + b, hi);
      }
    });
    __syncthreads();
    if (threadIdx.x == 0) {
      int b = 0, lastFull = -1;
      bool found = false;
      for (; b < sampleBuckets; b++) {
        if (!counts[b]) continue;
        lastFull = b;
        mass w = (mass)high[b] << 32 | low[b];
        if (counts[b] >= count || w >= goal) {
          found = true;
          break;
        }
        count -= counts[b], goal -= w;
      }
      edge = found ? b : -1 - lastFull, countLeft = count, goalLeft = goal;
      least = 0xffffffffu, most = 0;
    }
    __syncthreads();
    if (edge < 0) return; // the prefix is all there is
    count = countLeft, goal = goalLeft;
    everyToken(c.x, c.vocabulary, [&](int t, float u) {
      float v;
      unsigned key;
      if (!c.has(t, u, v, key) || key < from || key > to || bucketOf(v, key) != edge) return;
      atomicMin(&least, key), atomicMax(&most, key);
    });
    __syncthreads();
    from = least, to = most;
    __syncthreads();
    if (from == to) break;
  }
  // All that is left are equal logits: how many of them, in order of token.
  long long take = 1;
  mass w = 0;
  {
    float v = from >> 31 ? __uint_as_float(from & 0x7fffffffu) : __uint_as_float(~from);
    w = massOf(weightOf(v - c.highest));
    long long byMass = w ? (long long)(goal / w + (goal % w != 0)) : count;
    take = max(1ll, min(count, byMass));
  }
  __shared__ unsigned found[32];
  __shared__ int cut;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int share = (c.vocabulary + 1023) / 1024 * 32, begin = warp * share, end = min(begin + share, c.vocabulary);
  unsigned n = 0;
  auto tied = [&](int t) {
    float v;
    unsigned key;
    return t < end && c.has(t, v, key) && key == from;
  };
  for (int t = begin + lane; t < begin + share; t += 32) n += __popc(__ballot_sync(allLanes, tied(t)));
  if (lane == 0) found[warp] = n;
  if (threadIdx.x == 0) cut = 0x7fffffff;
  __syncthreads();
  long long before = 0;
  for (int w = 0; w < warp; w++) before += found[w];
  if (before < take && take <= before + found[warp]) {
    for (int t = begin + lane; t < begin + share; t += 32) {
      unsigned set = __ballot_sync(allLanes, tied(t));
      long long here = __popc(set);
      if (before < take && take <= before + here && tied(t) && __popc(set & ((2u << lane) - 1)) == take - before) cut = t;
      before += here;
    }
  }
  __syncthreads();
  c.edge = from, c.token = cut;
  __syncthreads();
}

DEVICE mass totalOf(const Candidates& c) {
  mass sum = 0;
  everyToken(c.x, c.vocabulary, [&](int t, float u) {
    float v;
    unsigned key;
    if (c.has(t, u, v, key)) sum += massOf(weightOf(v - c.highest));
  });
  return blockTotal(sum);
}

// The first token at which the weights, in the order of tokens, exceed total · u.
DEVICE int pick(const Candidates& c, unsigned u24) {
  __shared__ mass totals[32];
  __shared__ int chosen;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int share = (c.vocabulary + 1023) / 1024 * 32, begin = warp * share, end = min(begin + share, c.vocabulary);
  auto weigh = [&](int t) -> mass {
    float v;
    unsigned key;
    return t < end && c.has(t, v, key) ? massOf(weightOf(v - c.highest)) : 0;
  };
  mass sum = 0;
  for (int t = begin + lane; t < begin + share; t += 32) sum += weigh(t);
  for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(allLanes, sum, o);
  if (lane == 0) totals[warp] = sum;
  __syncthreads();
  mass total = 0, before = 0;
  for (int w = 0; w < 32; w++) {
    if (w == warp) before = total;
    total += totals[w];
  }
  const mass goal = __umul64hi(total, (mass)u24 << 40);
  if (before <= goal && goal < before + totals[warp]) {
    for (int t = begin + lane; t < begin + share; t += 32) {
      mass w = weigh(t), upTo = w;
      for (int o = 1; o < 32; o *= 2) {
        mass v = __shfl_up_sync(allLanes, upTo, o);
        if (lane >= o) upTo += v;
      }
      unsigned over = __ballot_sync(allLanes, before + upTo > goal);
      if (over) {
        if (lane == __ffs(over) - 1) chosen = t;
        break;
      }
      before += __shfl_sync(allLanes, upTo, 31);
    }
  }
  __syncthreads();
  return chosen;
}

KERNEL __launch_bounds__(sampleThreads, 1) draw(const __grid_constant__ SampleArguments a) {
  const SampleRow s = a.rows[blockIdx.x]; // came before the step began
  chainEarly();
  int token = s.target;
  if (token < 0) {
    Candidates c = {logitsOf(a, s), a.vocabulary, s.temperature, 0, -INFINITY, 0, 0x7fffffff};
    float best;
    if (!highestOfCluster(c.x, a.vocabulary, best, token)) return;
    if (token >= 0 && !(s.flags & 2)) {
      c.highest = fminf(__fdiv_rn(best, s.temperature), 3.402823466e38f);
      if (s.minLog > -INFINITY) c.lowest = __fadd_rn(__fdiv_rn(best, s.temperature), s.minLog);
      if (s.topK > 0 && s.topK < a.vocabulary) select(c, s.topK, ~0ull);
      if (s.topP < 1) select(c, 1ll << 40, max((mass)1, (mass)((double)totalOf(c) * (double)s.topP)));
      token = pick(c, s.uniform);
    }
    if (threadIdx.x == 0 && token >= 0 && s.seat >= 0 && s.seat < a.seats) {
      a.last[s.seat] = token;
      unsigned* n = a.counts + size_t(s.seat) * a.vocabulary + token;
      *n = (*n | seenBit) + 1;
    }
  }
  if (threadIdx.x == 0 && blockIdx.z == 0) a.drawn[blockIdx.x].token = (*a.posted)[blockIdx.x].token = token;
}

// score: log p = x - max - log Σ exp(x - max) of the raw logits, the rank, the best.
KERNEL __launch_bounds__(sampleThreads) scoreTokens(const __grid_constant__ SampleArguments a) {
  chain();
  const SampleRow s = a.rows[blockIdx.x];
  const int token = a.drawn[blockIdx.x].token;
  if (s.top < 0 || token < 0) return;
  const float* x = a.logits + size_t(s.row) * a.stride;
  const float chosen = token < a.vocabulary ? x[token] : -INFINITY;
  float high;
  int first;
  highestOf(x, a.vocabulary, high, first, false, 0, 0);
  double sum = 0;
  int rank = 0;
  everyToken(x, a.vocabulary, [&](int t, float v) {
    sum += (double)weightOf(v - high);
    rank += v > chosen || (v == chosen && t < token);
  });
  sum = blockTotal(sum);
  rank = blockTotal(rank);
  const float logTotal = (float)log(sum);
  if (threadIdx.x == 0) a.drawn[blockIdx.x].logprob = chosen - high - logTotal, a.drawn[blockIdx.x].rank = rank + 1;
  float value = 0;
  int at = 0;
  for (int i = 0; i < s.top && i < a.vocabulary; i++) {
    highestOf(x, a.vocabulary, value, at, i > 0, value, at);
    if (threadIdx.x == 0) a.top[s.topAt + i] = {at, value - high - logTotal};
    if (at < 0) break;
  }
}
