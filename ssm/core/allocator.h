// Memory for tensors, on the host or a card. The current allocator is a thread-local setting: the heap (or
// cudaMalloc), or inside an ArenaScope an arena that keeps freed blocks by device and size. A step that makes
// the same tensors in the same order gets the same addresses again, warm in cache, and once warm, it or one
// of smaller tensors never takes large blocks from the heap.
#pragma once

#include <cstddef>
#include <memory>

#include "ssm/core/device.h"

namespace ssm {

inline constexpr size_t kAlignment = 64;  // bytes: a cache line, a 512-bit vector; 256 on a card

// Uninitialised, aligned memory from the current allocator. Throws Error when there is none.
std::shared_ptr<std::byte> allocate_bytes(size_t bytes, Device device = kCpu);

// Blocks return to the arena when their last tensor goes; they may outlive it.
class Arena {
 public:
  // A free block up to `loose_fit` times what is wanted serves too. Loose: one of fewer tokens needs no
  // memory of its own. Tight: steps of equal tensors hold no more than they use.
  static constexpr double kLoose = 8, kTight = 1.25;
  explicit Arena(double loose_fit = kLoose);
  std::shared_ptr<std::byte> allocate(size_t bytes, Device device = kCpu);
  size_t capacity() const;  // bytes held on all devices, in use or free

 private:
  struct Blocks;
  std::shared_ptr<std::byte> fresh(size_t size, Device device);

  double loose_fit_;
  std::shared_ptr<Blocks> blocks_;
};

// Makes `arena` the thread's current allocator (after a reset) while in scope. An inner scope with nullptr
// puts the heap back, for what must outlive the step.
class ArenaScope {
 public:
  explicit ArenaScope(Arena* arena);
  ~ArenaScope();
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena* previous_;
};

}  // namespace ssm
