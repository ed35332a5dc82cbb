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
