// What all kernels share: number types, the tensor cores' fragments, copies that
// run ahead, and programmatic dependent launch (PDL).
//
// Every kernel takes one struct by value; kernels/cuda/arguments.go mirrors it.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

typedef __nv_bfloat16 bf16;
typedef __half f16;

#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__ void

constexpr int warpSizeOf = 32;
constexpr unsigned allLanes = 0xffffffffu;
constexpr int blockTokens = 16;  // kernels.BlockTokens
constexpr int chunkColumns = 32; // columns of a weight that lie together (pack.cuh)
constexpr int chunkBytes = 512;  // 8 rows × 32 columns × 2 bytes
constexpr int groupBlocks = 8;   // blocks of 8 rows whose chunks lie together, two of each (pack.cuh)
constexpr int groupBytes = groupBlocks * 2 * chunkBytes, pairStep = groupBytes / 16; // from two chunks of a block to its next two

template <class T> DEVICE float widen(T v);
template <> DEVICE float widen<float>(float v) { return v; }
template <> DEVICE float widen<bf16>(bf16 v) { return __bfloat162float(v); }
template <> DEVICE float widen<f16>(f16 v) { return __half2float(v); }
template <class T> DEVICE T narrow(float v);
template <> DEVICE float narrow<float>(float v) { return v; }
template <> DEVICE bf16 narrow<bf16>(float v) { return __float2bfloat16_rn(v); }
template <> DEVICE f16 narrow<f16>(float v) { return __float2half_rn(v); }

template <class T> DEVICE uint32_t pair(float lo, float hi) {
  T v[2] = {narrow<T>(lo), narrow<T>(hi)};
  uint32_t u;
  memcpy(&u, v, 4);
  return u;
}

// Warp sums and maxima in one fixed order.
DEVICE float warpSum(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(allLanes, v, o);
  return v;
}
DEVICE float warpMax(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(allLanes, v, o));
  return v;
}

// The next kernel of the stream may start; what it does before dependency() must
// touch weights alone. dependency() waits for all kernels before this one.
DEVICE void dependency() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void release() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
DEVICE void chain() {
  dependency();
  release();
}
// The other order lets the next kernel begin its own preparations as soon as there is
// room beside this one, which a chain of short kernels gains by.
DEVICE void chainEarly() {
  release();
  dependency();
}

// Reads a kernel's arguments, line by line, before they are needed: a launch's are
// far away.
template <class A> DEVICE void touch(const A& a) {
#pragma unroll
  for (int i = 0; i < (int)sizeof(A); i += 64) {
    int v = *(const int*)((const char*)&a + i);
    asm volatile("" ::"r"(v));
  }
}

DEVICE uint32_t shared(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

DEVICE uint64_t streamingPolicy() {
  uint64_t p;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(p));
  return p;
}
// Where chunk `chunk` of a weight's block is, in 16 bytes.
DEVICE size_t chunkAt(int chunks, int block, int chunk) {
  return (size_t(block / groupBlocks) * (chunks / 2) + chunk / 2) * pairStep + (block % groupBlocks * 2 + chunk % 2) * (chunkBytes / 16);
}

// 16 bytes from global to shared memory; bytes < 16 fills with zeros.
DEVICE void copyAsync(uint32_t dst, const void* src, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
}
DEVICE void copyAsyncOnce(uint32_t dst, const void* src, uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "l"(policy) : "memory");
}
DEVICE void commitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEVICE void waitCopies() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

DEVICE uint4 loadShared(uint32_t at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
  return v;
}
DEVICE uint4 loadMatrix(uint32_t at) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
  return v;
}
// The same of the transposed matrices.
DEVICE uint4 loadMatrixTurned(uint32_t at) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
  return v;
}
// 16 bytes that this kernel reads once.
DEVICE uint4 loadOnce(const void* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

// d += a · b, a 16×16, b 16×8, d 16×8 in float32. With r = lane/4, q = lane%4 a
// lane holds a: rows r, r+8 × columns 2q, 2q+1 (x, y), 2q+8, 2q+9 (z, w); b: rows
// 2q, 2q+1 and 2q+8, 2q+9 of column r; d: rows r (0, 1), r+8 (2, 3), columns 2q, 2q+1.
template <class T> DEVICE void multiply(float (&d)[4], uint4 a, uint32_t b0, uint32_t b1);
template <> DEVICE void multiply<bf16>(float (&d)[4], uint4 a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
template <> DEVICE void multiply<f16>(float (&d)[4], uint4 a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// By the special unit alone, subnormals as zero.
DEVICE float powerOfTwo(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Activation names match kernels.Activation.
enum Activation { identity, silu, gelu, geluTanh };
template <class T> DEVICE float activate(int kind, float x) {
  switch (kind) {
    case silu: return sizeof(T) == 4 ? x / (1.f + expf(-x)) : x * reciprocal(1.f + powerOfTwo(-1.44269504f * x));
    case gelu: return 0.5f * x * (1.f + erff(x * 0.70710678118654752f));
    case geluTanh: return 0.5f * x * (1.f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
  }
  return x;
}
DEVICE float softcapped(float cap, float x) { return cap > 0 ? cap * tanhf(x / cap) : x; }
