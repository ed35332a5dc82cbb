#include "ssm/core/mailbox.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"

namespace ssm {
namespace {

constexpr int kThreads = 128;
constexpr auto kSpin = std::chrono::microseconds(500);  // a step is shorter; after it the CPU is let go
constexpr auto kNap = std::chrono::microseconds(20);

// host[0]: the number of the delivery, written last; host[1 ..]: the values.
__global__ void mailbox_deliver_kernel(const int32_t* values, int64_t size, volatile int32_t* host,
                                       int32_t* count) {
  cuda::grid_dependency_wait();
  for (int64_t i = threadIdx.x; i < size; i += kThreads) host[1 + i] = values[i];
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x == 0) host[0] = ++*count;
}

}  // namespace

Mailbox::Mailbox(int64_t size)
    : size_(size),
      host_(cuda::allocate_pinned(static_cast<size_t>(size + 1) * sizeof(int32_t))),
      count_(Tensor::zeros({1}, DType::i32, kCuda)) {
  std::memset(host_.get(), 0, static_cast<size_t>(size + 1) * sizeof(int32_t));
}

void Mailbox::enqueue(const Tensor& values) const {
  cuda::launch({.grid = dim3(1), .block = dim3(kThreads), .overlaps_previous = true}, mailbox_deliver_kernel,
               values.data<int32_t>(), size_, reinterpret_cast<volatile int32_t*>(host_.get()),
               count_.data<int32_t>());
}

void Mailbox::take(std::span<int32_t> values) {
  const auto* host = reinterpret_cast<volatile int32_t*>(host_.get());
  const int32_t expected = taken_ + 1;
  const auto start = std::chrono::steady_clock::now();
  for (int64_t round = 1; host[0] != expected; ++round) {
    if (round % 1024 != 0) continue;
    const cudaError_t error = cudaStreamQuery(cuda::stream());
    if (error != cudaErrorNotReady) {
      cuda::check(error, "a decode step");
      SSM_CHECK(host[0] == expected, "cuda: a decode step ended without its result");
    }
    if (std::chrono::steady_clock::now() - start > kSpin) std::this_thread::sleep_for(kNap);
  }
  std::atomic_thread_fence(std::memory_order_acquire);
  taken_ = expected;
  for (size_t i = 0; i < values.size(); ++i) values[i] = host[1 + i];
}

}  // namespace ssm
