#include "ssm/core/cuda.h"

#include <atomic>

#include "ssm/core/error.h"

namespace ssm::cuda {
namespace {

constexpr int kOldestMajor = 8;  // compute capability 8.0
std::atomic<size_t> peak_bytes{0};

struct Context {
  std::string problem;  // empty: the card works
  Properties properties;
  cudaStream_t stream = nullptr;
};

std::string name_of(cudaError_t error) {
  return fmt::format("{} ({})", cudaGetErrorString(error), cudaGetErrorName(error));
}

std::string open(Context& context) {
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver)
    return "the NVIDIA driver is missing or older than this build's CUDA";
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) return "no CUDA device was found";
  if (error != cudaSuccess) return name_of(error);
  cudaDeviceProp p{};
  error = cudaGetDeviceProperties(&p, 0);
  if (error != cudaSuccess) return name_of(error);
  if (p.major < kOldestMajor) {
    return fmt::format("{} has compute capability {}.{}, at least {}.0 is needed", p.name, p.major, p.minor,
                       kOldestMajor);
  }
  if (error = cudaSetDevice(0); error == cudaSuccess) {
    error = cudaStreamCreateWithFlags(&context.stream, cudaStreamNonBlocking);
  }
  if (error != cudaSuccess) return fmt::format("{}: {}", p.name, name_of(error));
  context.properties = {p.name,        p.major,
                        p.minor,       p.multiProcessorCount,
                        p.l2CacheSize, static_cast<int>(p.sharedMemPerBlockOptin)};
  return "";
}

// Made at first use; the stream lives as long as the process.
const Context& context() {
  static const Context made = [] {
    Context c;
    c.problem = open(c);
    return c;
  }();
  return made;
}

const Context& working() {
  const Context& c = context();
  if (!c.problem.empty()) fail("cuda: {}", c.problem);
  thread_local const bool set = (check(cudaSetDevice(0), "cudaSetDevice"), true);  // current per thread
  static_cast<void>(set);
  return c;
}

}  // namespace

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report this one again
  fail("cuda: {}: {}", what, name_of(error));
}

std::string why_unavailable() { return context().problem; }
const Properties& properties() { return working().properties; }
cudaStream_t stream() { return working().stream; }

void copy(void* to, const void* from, size_t bytes, bool to_host) {
  const cudaStream_t s = stream();
  SSM_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, s));
  if (to_host) SSM_CUDA_CHECK(cudaStreamSynchronize(s));
}

void zero(void* to, size_t bytes) { SSM_CUDA_CHECK(cudaMemsetAsync(to, 0, bytes, stream())); }
void zero_rows(void* to, int64_t rows, size_t stride, size_t bytes) {
  SSM_CUDA_CHECK(cudaMemset2DAsync(to, stride, 0, bytes, static_cast<size_t>(rows), stream()));
}
void synchronize() { SSM_CUDA_CHECK(cudaStreamSynchronize(stream())); }

DeviceMemory memory() {
  DeviceMemory m;
  stream();
  SSM_CUDA_CHECK(cudaMemGetInfo(&m.free, &m.total));
  m.peak = peak_bytes;
  return m;
}

std::shared_ptr<std::byte> allocate(size_t bytes) {
  static std::atomic<size_t> held{0};
  stream();
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    const DeviceMemory m = memory();
    fail("out of memory: the card has {} of {} MiB free, {} MiB more were asked for", m.free >> 20,
         m.total >> 20, (bytes + (size_t{1} << 20) - 1) >> 20);
  }
  check(error, "cudaMalloc");
  const size_t now = held += bytes;
  for (size_t peak = peak_bytes; peak < now && !peak_bytes.compare_exchange_weak(peak, now);) {
  }
  return {static_cast<std::byte*>(data), [bytes](std::byte* p) {
            cudaFree(p);
            held -= bytes;
          }};
}

std::shared_ptr<std::byte> allocate_pinned(size_t bytes) {
  stream();
  void* data = nullptr;
  SSM_CUDA_CHECK(cudaMallocHost(&data, bytes));
  return {static_cast<std::byte*>(data), [](std::byte* p) { cudaFreeHost(p); }};
}

}  // namespace ssm::cuda
