// Barriers in shared memory (mbarrier; compute capability 9.0 and later): a phase ends when all expected
// arrivals have come, what was written before an arrival is seen after a wait for that phase's end, and the
// next phase begins. Also barriers among some of a block's warps.
#pragma once

#include <cstdint>

namespace ssm::cuda {

#if __CUDA_ARCH__ >= 900

__device__ __forceinline__ void init_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("{.reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0];}" ::"r"(barrier) : "memory");
}
// Arrives, and makes the phase wait for this many bytes of copies (tensor_map.cuh) too.
__device__ __forceinline__ void arrive_expecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("{.reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;}" ::"r"(barrier),
               "r"(bytes)
               : "memory");
}
// Arrives at the same barrier of another block of the cluster.
__device__ __forceinline__ void arrive_in_block(uint32_t barrier, unsigned rank) {
  asm volatile(
      "{.reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; mbarrier.arrive.shared::cluster.b64 _, "
      "[there];}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
// Barriers that were made are seen by copies and by the other blocks of the cluster, after a barrier among
// them.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// `parity` of the phase: of the first one 0, then 1, 0, ..
__device__ __forceinline__ void wait_for_phase(uint32_t barrier, int parity) {
  asm volatile(
      "{.reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @!done bra "
      "again;}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Among `threads` threads, whole warps; `number` 1 to 15 tells barriers apart.
__device__ __forceinline__ void sync_threads(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

#endif

}  // namespace ssm::cuda
