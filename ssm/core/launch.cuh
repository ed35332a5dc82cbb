// Programmatic dependent launch, as the device sees it (core/cuda.h: Launch::overlaps_previous). On cards
// before compute capability 9.0 kernels do not overlap and both are nothing.
#pragma once

namespace ssm::cuda {

// Waits until all that was enqueued before this kernel has ended and its writes are visible.
__device__ __forceinline__ void grid_dependency_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may be launched once all blocks have said so or ended; it still waits for this one's end.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace ssm::cuda
