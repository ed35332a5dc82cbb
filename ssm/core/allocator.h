// Memory for tensors. The current allocator is a thread-local setting: the heap, or inside an ArenaScope an
// arena that keeps freed blocks by size. A step that makes the same tensors in the same order gets the same
// addresses again, warm in cache, and once warm never takes tensor memory from the heap.
#pragma once

#include <cstddef>
#include <memory>

namespace ssm {

inline constexpr size_t kAlignment = 64;  // bytes: a cache line, a 512-bit vector

// Uninitialised, 64-byte aligned memory from the current allocator. Throws Error when there is none.
std::shared_ptr<std::byte> allocate_bytes(size_t bytes);

// Blocks return to the arena when their last tensor goes; they may outlive it.
class Arena {
 public:
  Arena();
  std::shared_ptr<std::byte> allocate(size_t bytes);
  size_t capacity() const;  // bytes held, in use or free

 private:
  struct Blocks;
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
