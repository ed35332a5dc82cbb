// Working memory of a kernel: 64-byte aligned, one buffer a thread and Use that grows to the largest asked
// for, so that nothing is allocated once warm. Valid until the thread's next call with the same Use.
#pragma once

#include <memory>

#include "ssm/core/allocator.h"

namespace ssm::cpu {

struct TaskScratch {};    // of one task inside a parallel_for
struct SharedScratch {};  // of an op's call, read by its tasks

template <class Use = TaskScratch>
float* thread_scratch(int64_t floats) {
  thread_local std::shared_ptr<std::byte> buffer;
  thread_local int64_t capacity = 0;
  if (floats > capacity) {
    const ArenaScope heap(nullptr);  // an arena's memory would not outlive its step
    buffer = allocate_bytes(static_cast<size_t>(floats) * sizeof(float));
    capacity = floats;
  }
  return reinterpret_cast<float*>(buffer.get());
}

}  // namespace ssm::cpu
