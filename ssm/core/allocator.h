// Memory for tensors. The current allocator is a thread-local setting: the heap, or inside an ArenaScope a
// bump arena that hands out the same addresses in the same order at each step and never touches the heap once
// warm.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace ssm {

inline constexpr size_t kAlignment = 64;  // bytes: a cache line, a 512-bit vector

// Uninitialised, 64-byte aligned memory from the current allocator. Throws Error when there is none.
std::shared_ptr<std::byte> allocate_bytes(size_t bytes);

// The activations of one step. A tensor from an arena is valid until the next reset().
class Arena {
 public:
  std::shared_ptr<std::byte> allocate(size_t bytes);
  void reset();  // everything handed out is free again; blocks are merged into one that fits it all
  size_t capacity() const;  // bytes held

 private:
  struct Block {
    std::shared_ptr<std::byte> data;
    size_t size = 0;
    size_t used = 0;
  };
  std::vector<Block> blocks_;
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
