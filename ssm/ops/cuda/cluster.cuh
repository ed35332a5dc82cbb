// Clusters of blocks that work on one row together, through one another's shared memory. On cards before
// compute capability 9.0 a cluster is one block, and the same kernels run.
#pragma once

#include <cstdint>

#include "ssm/core/cuda.h"

namespace ssm::cuda {

// The most blocks that every card with clusters takes; 1 where there are none.
inline unsigned largest_cluster() { return properties().major >= 9 ? 8 : 1; }

// How many clusters of such a launch the card runs at once.
template <class... Parameters>
int most_clusters(const Launch& how, void (*kernel)(Parameters...)) {
  int count = 0;
  check(cudaOccupancyMaxActiveClusters(&count, kernel, LaunchConfig(how).get()),
        "cudaOccupancyMaxActiveClusters");
  return count;
}

__device__ __forceinline__ unsigned cluster_size() {
#if __CUDA_ARCH__ >= 900
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#else
  return 1;
#endif
}

__device__ __forceinline__ unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}

// The same variable in the shared memory of another block of the cluster. That block must have started, and
// may not end before the access.
template <class T>
__device__ __forceinline__ T* in_block(T* shared, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  T* there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(shared), "r"(rank));
  return there;
#else
  return shared;
#endif
}

// A barrier among all threads of the cluster, in two halves: what was written before arriving is seen by all
// after waiting. Every thread calls both.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}
__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

}  // namespace ssm::cuda
