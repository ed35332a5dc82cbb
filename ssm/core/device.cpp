#include "ssm/core/device.h"

#include <cstring>

#include "ssm/core/error.h"
#ifdef SSM_CUDA
#include "ssm/core/cuda.h"
#endif

namespace ssm {
namespace {

void zero_rows_of_host(void* to, int64_t rows, size_t stride, size_t bytes) {
  for (int64_t r = 0; r < rows; ++r) {
    std::memset(static_cast<std::byte*>(to) + static_cast<size_t>(r) * stride, 0, bytes);
  }
}

constexpr std::string_view kNoCuda = "this build has no CUDA support";

}  // namespace

std::string_view name_of(Device device) { return device.is_cuda() ? "cuda" : "cpu"; }

#ifdef SSM_CUDA

std::string why_unavailable(Device device) { return device.is_cuda() ? cuda::why_unavailable() : ""; }
std::string description_of(Device device) { return device.is_cuda() ? cuda::properties().name : ""; }

namespace {

// A replay would read again what may long be gone.
bool is_capturing() {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  SSM_CUDA_CHECK(cudaStreamIsCapturing(cuda::stream(), &status));
  return status == cudaStreamCaptureStatusActive;
}

}  // namespace

void copy_bytes(void* to, Device to_device, const void* from, Device from_device, size_t bytes) {
  if (!to_device.is_cuda() && !from_device.is_cuda()) {
    std::memcpy(to, from, bytes);
  } else {
    SSM_CHECK(from_device.is_cuda() || !is_capturing(),
              "cuda: a copy from the host's memory cannot be captured");
    cuda::copy(to, from, bytes, !to_device.is_cuda());
  }
}

void zero_bytes(void* to, Device device, size_t bytes) {
  device.is_cuda() ? cuda::zero(to, bytes) : static_cast<void>(std::memset(to, 0, bytes));
}

void zero_rows(void* to, Device device, int64_t rows, size_t stride, size_t bytes) {
  device.is_cuda() ? cuda::zero_rows(to, rows, stride, bytes) : zero_rows_of_host(to, rows, stride, bytes);
}

void synchronize(Device device) {
  if (device.is_cuda()) cuda::synchronize();
}

DeviceMemory memory_of(Device device) {
  SSM_CHECK(device.is_cuda(), "the memory of a CPU is not counted");
  return cuda::memory();
}

#else

std::string why_unavailable(Device device) { return device.is_cuda() ? std::string(kNoCuda) : ""; }
std::string description_of(Device) { return ""; }

void copy_bytes(void* to, Device to_device, const void* from, Device from_device, size_t bytes) {
  SSM_CHECK(!to_device.is_cuda() && !from_device.is_cuda(), "{}", kNoCuda);
  std::memcpy(to, from, bytes);
}

void zero_bytes(void* to, Device device, size_t bytes) {
  SSM_CHECK(!device.is_cuda(), "{}", kNoCuda);
  std::memset(to, 0, bytes);
}

void zero_rows(void* to, Device device, int64_t rows, size_t stride, size_t bytes) {
  SSM_CHECK(!device.is_cuda(), "{}", kNoCuda);
  zero_rows_of_host(to, rows, stride, bytes);
}

void synchronize(Device) {}

DeviceMemory memory_of(Device) { fail("{}", kNoCuda); }

#endif

}  // namespace ssm
