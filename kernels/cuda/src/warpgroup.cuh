// Products of a warpgroup (four warps) on Hopper's tensor cores (PTX ISA, wgmma): d
// += a · b, a 64×16, b 16×N. A lane holds of d what it holds of mma.sync's 16×8
// tiles, one after the other: d[4j …] is rows r and r + 8 of its warp's 16, columns
// 8j + 2q and + 1.
#pragma once
#include "bulk.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// Operands %0 … of an instruction and the registers that they are.
#define PLACES8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define PLACES16 PLACES8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define PLACES24 PLACES16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define PLACES32 PLACES24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define PLACES40 PLACES32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define PLACES48 PLACES40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define PLACES56 PLACES48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define PLACES64 PLACES56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define PLACES72 PLACES64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define PLACES80 PLACES72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define PLACES88 PLACES80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define PLACES96 PLACES88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define PLACES104 PLACES96 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define PLACES112 PLACES104 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define PLACES120 PLACES112 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define PLACES128 PLACES120 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define SUMS8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SUMS16(d, i) SUMS8(d, i), SUMS8(d, i + 8)
#define SUMS24(d, i) SUMS16(d, i), SUMS8(d, i + 16)
#define SUMS32(d, i) SUMS24(d, i), SUMS8(d, i + 24)
#define SUMS40(d, i) SUMS32(d, i), SUMS8(d, i + 32)
#define SUMS48(d, i) SUMS40(d, i), SUMS8(d, i + 40)
#define SUMS56(d, i) SUMS48(d, i), SUMS8(d, i + 48)
#define SUMS64(d, i) SUMS56(d, i), SUMS8(d, i + 56)
#define SUMS72(d, i) SUMS64(d, i), SUMS8(d, i + 64)
#define SUMS80(d, i) SUMS72(d, i), SUMS8(d, i + 72)
#define SUMS88(d, i) SUMS80(d, i), SUMS8(d, i + 80)
#define SUMS96(d, i) SUMS88(d, i), SUMS8(d, i + 88)
#define SUMS104(d, i) SUMS96(d, i), SUMS8(d, i + 96)
#define SUMS112(d, i) SUMS104(d, i), SUMS8(d, i + 104)
#define SUMS120(d, i) SUMS112(d, i), SUMS8(d, i + 112)
#define SUMS128(d, i) SUMS120(d, i), SUMS8(d, i + 120)

// Both factors from shared memory; without `keep` d is what it was not: zero.
template <class T, int N> struct Warpgroup;
#define WARPGROUP(T, name, N, COUNT, A, B, KEEP)                                                                       \
  template <> struct Warpgroup<T, N> {                                                                                 \
    static DEVICE void multiply(float (&d)[COUNT], uint64_t a, uint64_t b, int keep) {                                 \
      asm volatile("{.reg .pred keep;\nsetp.ne.b32 keep, " KEEP ", 0;\n"                                               \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." name "." name " {" PLACES##COUNT "}, " A ", " B    \
                   ", keep, 1, 1, 0, 0;}"                                                                              \
                   : SUMS##COUNT(d, 0)                                                                                 \
                   : "l"(a), "l"(b), "r"(keep));                                                                       \
    }                                                                                                                  \
  };
#define WARPGROUPS(T, name) \
  WARPGROUP(T, name, 16, 8, "%8", "%9", "%10") \
  WARPGROUP(T, name, 32, 16, "%16", "%17", "%18") \
  WARPGROUP(T, name, 64, 32, "%32", "%33", "%34") \
  WARPGROUP(T, name, 80, 40, "%40", "%41", "%42") \
  WARPGROUP(T, name, 96, 48, "%48", "%49", "%50") \
  WARPGROUP(T, name, 112, 56, "%56", "%57", "%58") \
  WARPGROUP(T, name, 128, 64, "%64", "%65", "%66") \
  WARPGROUP(T, name, 144, 72, "%72", "%73", "%74") \
  WARPGROUP(T, name, 160, 80, "%80", "%81", "%82") \
  WARPGROUP(T, name, 176, 88, "%88", "%89", "%90") \
  WARPGROUP(T, name, 192, 96, "%96", "%97", "%98") \
  WARPGROUP(T, name, 208, 104, "%104", "%105", "%106") \
  WARPGROUP(T, name, 224, 112, "%112", "%113", "%114") \
  WARPGROUP(T, name, 240, 120, "%120", "%121", "%122") \
  WARPGROUP(T, name, 256, 128, "%128", "%129", "%130")
WARPGROUPS(bf16, "bf16") WARPGROUPS(f16, "f16")

// a from registers, as mma.sync has it; b from shared memory with its columns
// contiguous (keys × dimensions of values, say).
template <class T, int N> struct WarpgroupOver;
#define WARPGROUP_OVER(T, name, N, COUNT, A0, A1, A2, A3, B, KEEP)                                                       \
  template <> struct WarpgroupOver<T, N> {                                                                             \
    static DEVICE void multiply(float (&d)[COUNT], uint4 a, uint64_t b, int keep) {                                    \
      asm volatile("{.reg .pred keep;\nsetp.ne.b32 keep, " KEEP ", 0;\n"                                               \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." name "." name " {" PLACES##COUNT "}, {" A0 ", "    \
                   A1 ", " A2 ", " A3 "}, " B ", keep, 1, 1, 1;}"                                                      \
                   : SUMS##COUNT(d, 0)                                                                                 \
                   : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"(keep));                                       \
    }                                                                                                                  \
  };
#define WARPGROUPS_OVER(T, name)                                                      \
  WARPGROUP_OVER(T, name, 64, 32, "%32", "%33", "%34", "%35", "%36", "%37") \
  WARPGROUP_OVER(T, name, 128, 64, "%64", "%65", "%66", "%67", "%68", "%69")
WARPGROUPS_OVER(bf16, "bf16") WARPGROUPS_OVER(f16, "f16")

DEVICE void beginProducts() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void commitProducts() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> DEVICE void waitProducts() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

// The products run on while the warp goes on: neither before they begin nor until
// they are waited for may the compiler move what reads or writes their registers.
template <int N> DEVICE void hold(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N> DEVICE void hold(uint4 (&a)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(a[i].x), "+r"(a[i].y), "+r"(a[i].z), "+r"(a[i].w)::"memory");
}

// Where a factor lies in shared memory. `near` and `far` are the distances that the
// layout leaves open (PTX ISA, leading and stride dimension byte offset).
constexpr uint64_t plainTiles = 0, swizzledTiles = 1ull << 62; // 8 rows × 16 bytes; 8 rows × 128 bytes
DEVICE uint64_t factor(uint32_t at, uint64_t layout, int near, int far) {
  return (uint64_t)(at >> 4 & 0x3fff) | (uint64_t)(near >> 4) << 16 | (uint64_t)(far >> 4) << 32 | layout;
}
#endif
