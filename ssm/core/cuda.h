// CUDA for the .cu files: one card, one stream, errors as exceptions. Included only where SSM_CUDA is
// defined.
//
// All work of a process goes to one non-blocking stream, so ops follow one another without events, and a
// block of memory that its last tensor gave back may be handed out again at once.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>
#include <string>
#include <utility>

#include "ssm/core/device.h"

namespace ssm::cuda {

// Throws Error naming the call. An out-of-memory error says how much is free.
void check(cudaError_t error, const char* what);
#define SSM_CUDA_CHECK(call) ::ssm::cuda::check((call), #call)

struct Properties {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  int l2_bytes = 0;
  int max_shared_bytes = 0;  // of a block, opted in
};

std::string why_unavailable();
const Properties& properties();  // throws Error when there is no working card
cudaStream_t stream();           // the same

void copy(void* to, const void* from, size_t bytes, bool to_host);
void zero(void* to, size_t bytes);
void zero_rows(void* to, int64_t rows, size_t stride, size_t bytes);
void synchronize();
DeviceMemory memory();
std::shared_ptr<std::byte> allocate(size_t bytes);         // cudaMalloc
std::shared_ptr<std::byte> allocate_pinned(size_t bytes);  // host memory that a card writes directly

// kernel<<<grid, block, shared>>>(args...) on the stream. Programmatic dependent launch: the kernel may start
// while the one before it ends, and waits for it in grid_dependency_wait() (core/launch.cuh), which every
// kernel launched so must call before it reads or writes what another kernel touches. Clusters are of blocks
// with neighbouring x, and divide the grid's x (ops/cuda/cluster.cuh).
struct Launch {
  dim3 grid, block;
  size_t shared_bytes = 0;
  bool overlaps_previous = false;
  unsigned cluster = 1;
};

// The runtime's terms for it, which point into the object.
class LaunchConfig {
 public:
  explicit LaunchConfig(const Launch& how) {
    config_.gridDim = how.grid;
    config_.blockDim = how.block;
    config_.dynamicSmemBytes = how.shared_bytes;
    config_.stream = stream();
    config_.attrs = attributes_;
    if (how.overlaps_previous) {
      cudaLaunchAttribute& overlaps = attributes_[config_.numAttrs++];
      overlaps.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      overlaps.val.programmaticStreamSerializationAllowed = 1;
    }
    if (how.cluster > 1) {
      cudaLaunchAttribute& cluster = attributes_[config_.numAttrs++];
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim.x = how.cluster;
      cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;
  LaunchConfig& operator=(const LaunchConfig&) = delete;
  const cudaLaunchConfig_t* get() const { return &config_; }

 private:
  cudaLaunchConfig_t config_{};
  cudaLaunchAttribute attributes_[2]{};
};

template <class... Parameters, class... Args>
void launch(const Launch& how, void (*kernel)(Parameters...), Args&&... args) {
  check(cudaLaunchKernelEx(LaunchConfig(how).get(), kernel, Parameters(std::forward<Args>(args))...),
        "a kernel launch");
}

// Gives all that L1 can spare to shared memory wherever `kernel` runs, so that the next kernel's blocks find
// room beside its own; once per kernel.
template <class Kernel>
bool prefer_shared(Kernel* kernel) {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
        "shared memory of a kernel");
  return true;
}

// Lets `kernel` use this much dynamic shared memory; call it once per kernel, through a static.
template <class Kernel>
bool allow_shared_bytes(Kernel* kernel, size_t bytes) {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "shared memory of a kernel");
  return true;
}

}  // namespace ssm::cuda
