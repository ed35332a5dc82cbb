#include "ssm/core/allocator.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "ssm/core/error.h"

namespace ssm {
namespace {

thread_local Arena* current_arena = nullptr;

constexpr size_t round_up(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

std::shared_ptr<std::byte> allocate_heap(size_t bytes) {
  SSM_CHECK(bytes < (size_t{1} << 62), "cannot allocate {} bytes", bytes);
  void* data = std::aligned_alloc(kAlignment, round_up(std::max<size_t>(bytes, 1)));
  SSM_CHECK(data != nullptr, "out of memory: cannot allocate {} bytes", bytes);
  return {static_cast<std::byte*>(data), [](std::byte* p) { std::free(p); }};
}

}  // namespace

std::shared_ptr<std::byte> allocate_bytes(size_t bytes) {
  return current_arena ? current_arena->allocate(bytes) : allocate_heap(bytes);
}

std::shared_ptr<std::byte> Arena::allocate(size_t bytes) {
  bytes = round_up(std::max<size_t>(bytes, 1));
  if (blocks_.empty() || blocks_.back().size - blocks_.back().used < bytes) {
    const size_t size = std::max({bytes, capacity(), size_t{1} << 20});
    blocks_.push_back({allocate_heap(size), size, 0});
  }
  Block& block = blocks_.back();
  std::shared_ptr<std::byte> result(block.data, block.data.get() + block.used);
  block.used += bytes;
  return result;
}

void Arena::reset() {
  if (blocks_.size() > 1) {
    const size_t total = capacity();
    blocks_.clear();
    blocks_.push_back({allocate_heap(total), total, 0});
  }
  for (Block& block : blocks_) block.used = 0;
}

size_t Arena::capacity() const {
  size_t total = 0;
  for (const Block& block : blocks_) total += block.size;
  return total;
}

ArenaScope::ArenaScope(Arena* arena) : previous_(current_arena) {
  if (arena) arena->reset();
  current_arena = arena;
}
ArenaScope::~ArenaScope() { current_arena = previous_; }

}  // namespace ssm
