#include "ssm/core/allocator.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <vector>

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

// Free blocks by size class, last in first out.
struct Arena::Blocks {
  std::mutex mutex;
  std::map<size_t, std::vector<std::shared_ptr<std::byte>>> free;
  size_t capacity = 0;
};

Arena::Arena() : blocks_(std::make_shared<Blocks>()) {}

std::shared_ptr<std::byte> Arena::allocate(size_t bytes) {
  // Eight classes an octave: a batch that grows or shrinks a little finds its blocks again.
  bytes = round_up(std::max<size_t>(bytes, 1));
  const size_t step = std::max<size_t>(kAlignment, std::bit_floor(bytes) / 8);
  const size_t size = (bytes + step - 1) / step * step;
  std::shared_ptr<std::byte> block;
  {
    std::lock_guard lock(blocks_->mutex);
    std::vector<std::shared_ptr<std::byte>>& free = blocks_->free[size];
    if (!free.empty()) {
      block = std::move(free.back());
      free.pop_back();
    }
  }
  if (!block) {
    block = allocate_heap(size);
    std::lock_guard lock(blocks_->mutex);
    blocks_->capacity += size;
    blocks_->free[size].reserve(blocks_->free[size].capacity() + 1);  // so that giving back cannot throw
  }
  std::byte* data = block.get();
  return {data, [blocks = blocks_, size, held = std::move(block)](std::byte*) mutable {
            std::lock_guard lock(blocks->mutex);
            blocks->free[size].push_back(std::move(held));
          }};
}

size_t Arena::capacity() const {
  std::lock_guard lock(blocks_->mutex);
  return blocks_->capacity;
}

ArenaScope::ArenaScope(Arena* arena) : previous_(current_arena) { current_arena = arena; }
ArenaScope::~ArenaScope() { current_arena = previous_; }

}  // namespace ssm
