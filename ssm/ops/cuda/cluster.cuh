// Clusters of blocks and their distributed shared memory, of compute capability 9.0 on. Before it, kernels
// that use them are not launched, and these are nothing.
#pragma once

#include <cstdint>

namespace ssm::cuda {

// A barrier of all threads of the cluster, in two halves: what a thread wrote before its arrive is seen after
// the wait.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Writes to the shared variable that lies at `at` in block `rank` of the cluster.
__device__ __forceinline__ void store_in_block([[maybe_unused]] float* at, [[maybe_unused]] uint32_t rank,
                                               [[maybe_unused]] float value) {
#if __CUDA_ARCH__ >= 900
  const uint32_t own = static_cast<uint32_t>(__cvta_generic_to_shared(at));
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(own), "r"(rank));
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(there), "f"(value) : "memory");
#endif
}

}  // namespace ssm::cuda
