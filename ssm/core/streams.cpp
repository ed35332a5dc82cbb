#include "ssm/core/streams.h"

#include <mutex>

#include "ssm/core/error.h"
#ifdef SSM_CUDA
#include "ssm/core/cuda.h"
#endif

namespace ssm {

#ifdef SSM_CUDA

namespace {

// What comes to `waiting` follows what is in `before` now.
void let_wait(cudaStream_t waiting, cudaStream_t before) {
  if (waiting == before) return;
  static std::mutex mutex;  // a wait is for the event's last record: one thread at a time
  static const cudaEvent_t event = [] {
    cudaEvent_t made = nullptr;
    SSM_CUDA_CHECK(cudaEventCreateWithFlags(&made, cudaEventDisableTiming));
    return made;
  }();
  const std::lock_guard lock(mutex);
  SSM_CUDA_CHECK(cudaEventRecord(event, before));
  SSM_CUDA_CHECK(cudaStreamWaitEvent(waiting, event, 0));
}

cudaStream_t handle(uintptr_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

}  // namespace

uintptr_t stream_of(Device device) {
  return device.is_cuda() ? reinterpret_cast<uintptr_t>(cuda::stream()) : 0;
}

void wait_for_stream(Device device, uintptr_t stream) {
  if (device.is_cuda()) let_wait(cuda::stream(), handle(stream));
}

void let_stream_wait(Device device, uintptr_t stream) {
  if (device.is_cuda()) let_wait(handle(stream), cuda::stream());
}

void synchronize_all(Device device) {
  if (!device.is_cuda()) return;
  cuda::stream();  // an Error where no card works
  SSM_CUDA_CHECK(cudaDeviceSynchronize());
}

#else

namespace {

void need_host(Device device) { SSM_CHECK(!device.is_cuda(), "{}", why_unavailable(device)); }

}  // namespace

uintptr_t stream_of(Device device) {
  need_host(device);
  return 0;
}

void wait_for_stream(Device device, uintptr_t) { need_host(device); }
void let_stream_wait(Device device, uintptr_t) { need_host(device); }
void synchronize_all(Device device) { need_host(device); }

#endif

}  // namespace ssm
