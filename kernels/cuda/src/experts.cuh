// The expert mix: which rows go to which expert, and the sum of what they give.
//
//	w = softmax(logits); the topK highest are kept (the lower index wins a tie)
//	out[m] (+)= Σ_e w[m,e] · down_e(act(gate_e(x)) · up_e(x)), in rising order of e
//
// Shazeer et al. 2017, §2.1; Jiang et al. 2024, §2.1. Pairs (row, expert) stand
// grouped by expert, in row order. Reference: ref.Experts, ref.Route.
#pragma once
#include "common.cuh"

struct ExpertArguments {
  const float* logits; // rows × experts
  int* chosen;         // row × topK: expert, rising
  float* weight;       // row × topK
  int* place;          // row × topK: where the pair stands
  int* pairs;          // by place: the row
  int* starts;         // per expert: its first place; one more
  const float* y;      // by place × columns: what the experts gave
  float* out;          // rows × columns
  int rows, experts, topK, columns, renormalise, accumulate;
};

// route: a warp a row.
KERNEL route(const __grid_constant__ ExpertArguments a) {
  chain();
  extern __shared__ float likely[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, m = blockIdx.x * (blockDim.x / 32) + warp;
  if (m >= a.rows) return;
  float* p = likely + warp * a.experts;
  const float* x = a.logits + size_t(m) * a.experts;
  float high = -INFINITY, sum = 0, total = 0;
  for (int i = lane; i < a.experts; i += 32) high = fmaxf(high, x[i]);
  high = warpMax(high);
  for (int i = lane; i < a.experts; i += 32) sum += p[i] = expf(x[i] - high);
  sum = warpSum(sum);
  __syncwarp();
  int* chosen = a.chosen + m * a.topK;
  float* weight = a.weight + m * a.topK;
  for (int k = 0; k < a.topK; k++) {
    float best = -1;
    int index = 0x7fffffff;
    for (int i = lane; i < a.experts; i += 32)
      if (p[i] > best) best = p[i], index = i;
    for (int o = 16; o; o >>= 1) {
      float v = __shfl_xor_sync(allLanes, best, o);
      int j = __shfl_xor_sync(allLanes, index, o);
      if (v > best || (v == best && j < index)) best = v, index = j;
    }
    if (index == 0x7fffffff) index = k; // nothing but not-a-numbers: any choice, its weight shows it
    float w = p[index] / sum;
    total += w;
    __syncwarp();
    if (lane == 0) {
      p[index] = -1;
      int at = k; // keep the list in rising order of expert
      while (at > 0 && chosen[at - 1] > index) chosen[at] = chosen[at - 1], weight[at] = weight[at - 1], at--;
      chosen[at] = index, weight[at] = w;
    }
    __syncwarp();
  }
  if (a.renormalise && lane == 0)
    for (int k = 0; k < a.topK; k++) weight[k] /= total;
}

// group: one block; pairs by expert, each expert's in row order. A warp an expert.
KERNEL group(const __grid_constant__ ExpertArguments a) {
  chain();
  extern __shared__ int counts[]; // experts + 1
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32, all = a.rows * a.topK;
  for (int e = warp; e < a.experts; e += warps) {
    int n = 0;
    for (int i = lane; i < all; i += 32) n += a.chosen[i] == e;
    for (int o = 16; o; o >>= 1) n += __shfl_xor_sync(allLanes, n, o);
    if (lane == 0) counts[e] = n;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int sum = 0;
    for (int e = 0; e <= a.experts; e++) {
      int n = e < a.experts ? counts[e] : 0;
      counts[e] = sum, a.starts[e] = sum, sum += n;
    }
  }
  __syncthreads();
  for (int e = warp; e < a.experts; e += warps) {
    int next = counts[e];
    for (int base = 0; base < all; base += 32) {
      int i = base + lane;
      bool mine = i < all && a.chosen[i] == e;
      unsigned set = __ballot_sync(allLanes, mine);
      if (mine) {
        int at = next + __popc(set & ((1u << lane) - 1));
        a.pairs[at] = i / a.topK, a.place[i] = at;
      }
      next += __popc(set);
    }
  }
}

// combine: a block a row.
KERNEL combine(const __grid_constant__ ExpertArguments a) {
  chain();
  const int m = blockIdx.x;
  for (int i = threadIdx.x; i < a.columns; i += blockDim.x) {
    size_t to = size_t(m) * a.columns + i;
    float v = a.accumulate ? a.out[to] : 0.f;
    for (int k = 0; k < a.topK; k++) v += __fmul_rn(a.weight[m * a.topK + k], a.y[size_t(a.place[m * a.topK + k]) * a.columns + i]);
    a.out[to] = v;
  }
}
