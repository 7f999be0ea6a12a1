// Hopper's copy engine: tiles come into shared memory by themselves and count their
// bytes on a barrier there (PTX ISA, cp.async.bulk.tensor and mbarrier).
#pragma once
#include "common.cuh"
#include <cuda.h>

// A barrier among some warps of the block; those that only arrive do not wait there.
DEVICE void syncSome(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEVICE void arriveSome(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

#if __CUDA_ARCH__ >= 900
DEVICE void initBarrier(uint32_t at, int count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(count) : "memory"); }
DEVICE void fenceBarriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void arrive(uint32_t at) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory"); }
// Bytes that lie together, to a barrier of this block.
DEVICE void copyBulk(uint32_t to, const void* from, int bytes, uint32_t barrier, uint64_t policy) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier), "l"(policy) : "memory");
}
// The same barrier in a block of this cluster.
DEVICE void arriveAt(uint32_t at, int rank) {
  asm volatile(
      "{.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];}" ::"r"(at), "r"(rank) : "memory");
}
DEVICE void expectBytes(uint32_t at, int bytes) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory"); }
DEVICE void waitBarrier(uint32_t at, int parity) {
  asm volatile(
      "{.reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over:}" ::"r"(at), "r"(parity) : "memory");
}
// Where what is at `at` in this block's shared memory is in another's of the cluster.
DEVICE uint32_t mapped(uint32_t at, int rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
  return there;
}
DEVICE float4 loadThere(uint32_t there) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(there) : "memory");
  return v;
}
DEVICE void sendPair(uint32_t there, float x, float y) { asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(there), "f"(x), "f"(y) : "memory"); }
DEVICE void arriveCluster() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEVICE void waitCluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
DEVICE void syncCluster() {
  arriveCluster();
  waitCluster();
}
DEVICE int clusterRank() {
  int r;
  asm("mov.u32 %0, %cluster_ctarank;" : "=r"(r));
  return r;
}
// What the engine and the tensor cores read next was written by ordinary stores.
DEVICE void fenceEngine() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
template <int N> DEVICE void raiseRegisters() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> DEVICE void lowerRegisters() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

// A slot of a ring, and the parity of the barriers' phase that it is in.
struct RingSlot {
  int slot = 0, phase = 0;
  template <int SLOTS> DEVICE void next() {
    if (++slot == SLOTS) slot = 0, phase ^= 1;
  }
};

DEVICE uint64_t plainPolicy() {
  uint64_t p;
  asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(p));
  return p;
}
DEVICE void copyTile(uint32_t to, const CUtensorMap* map, int c0, int c1, uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(map), "r"(c0), "r"(c1), "r"(barrier) : "memory");
}
// To the same place in every block of `mask`, each of whose barriers counts the bytes.
DEVICE void copyTileTo(int mask, uint32_t to, const CUtensorMap* map, int c0, int c1, uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to), "l"(map), "r"(c0), "r"(c1), "r"(barrier), "h"((short)mask) : "memory");
}
// From shared memory, into memory or, of float32, onto what stands there (subnormals count as zero, as in finish).
DEVICE void storeTile(const CUtensorMap* map, int c0, int c1, uint32_t from, int add) {
  if (add) asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(c0), "r"(c1), "r"(from) : "memory");
  else asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(c0), "r"(c1), "r"(from) : "memory");
}
DEVICE void copyTile(uint32_t to, const CUtensorMap* map, int c0, int c1, int c2, int c3, int c4, uint32_t barrier, uint64_t policy) {
  asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3, %4, %5, %6}], [%7], %8;" ::"r"(to), "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "r"(barrier), "l"(policy) : "memory");
}
// Bytes that lie together, into L2.
template <int BYTES> DEVICE void prefetchBulk(const void* from) { asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "n"(BYTES) : "memory"); }
#endif
