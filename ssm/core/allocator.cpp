#include "ssm/core/allocator.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#include "ssm/core/error.h"
#ifdef SSM_CUDA
#include "ssm/core/cuda.h"
#endif

namespace ssm {
namespace {

thread_local Arena* current_arena = nullptr;

constexpr size_t round_up(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

std::shared_ptr<std::byte> allocate_fresh(size_t bytes, Device device) {
  SSM_CHECK(bytes < (size_t{1} << 62), "cannot allocate {} bytes", bytes);
  if (device.is_cuda()) {
#ifdef SSM_CUDA
    return cuda::allocate(std::max<size_t>(bytes, 1));
#else
    fail("{}", why_unavailable(device));
#endif
  }
  void* data = std::aligned_alloc(kAlignment, round_up(std::max<size_t>(bytes, 1)));
  SSM_CHECK(data != nullptr, "out of memory: cannot allocate {} bytes", bytes);
  return {static_cast<std::byte*>(data), [](std::byte* p) { std::free(p); }};
}

}  // namespace

std::shared_ptr<std::byte> allocate_bytes(size_t bytes, Device device) {
  return current_arena ? current_arena->allocate(bytes, device) : allocate_fresh(bytes, device);
}

// Free blocks by device and size class, last in first out.
struct Arena::Blocks {
  std::mutex mutex;
  std::map<std::pair<DeviceType, size_t>, std::vector<std::shared_ptr<std::byte>>> free;
  size_t capacity = 0;
};

Arena::Arena(double loose_fit) : loose_fit_(loose_fit), blocks_(std::make_shared<Blocks>()) {}

// From the heap or the driver. Where there is no more, free blocks of other sizes are given back first.
std::shared_ptr<std::byte> Arena::fresh(size_t size, Device device) {
  try {
    return allocate_fresh(size, device);
  } catch (const Error&) {
    std::vector<std::shared_ptr<std::byte>> given_back;
    std::lock_guard lock(blocks_->mutex);
    for (auto& [key, free] : blocks_->free) {
      if (key.first != device.type) continue;
      blocks_->capacity -= key.second * free.size();
      std::move(free.begin(), free.end(), std::back_inserter(given_back));
      free.clear();
    }
    if (given_back.empty()) throw;
  }
  return allocate_fresh(size, device);
}

std::shared_ptr<std::byte> Arena::allocate(size_t bytes, Device device) {
  // Eight classes an octave: a batch that grows or shrinks a little finds its blocks again.
  bytes = round_up(std::max<size_t>(bytes, 1));
  const size_t step = std::max<size_t>(kAlignment, std::bit_floor(bytes) / 8);
  const size_t size = (bytes + step - 1) / step * step;
  std::pair key(device.type, size);
  std::shared_ptr<std::byte> block;
  {
    std::lock_guard lock(blocks_->mutex);
    const auto end =
        blocks_->free.upper_bound({device.type, static_cast<size_t>(static_cast<double>(size) * loose_fit_)});
    const auto fit = std::find_if(blocks_->free.lower_bound(key), end,
                                  [](const auto& entry) { return !entry.second.empty(); });
    if (fit != end) {
      key = fit->first;
      block = std::move(fit->second.back());
      fit->second.pop_back();
    }
  }
  if (!block) {
    block = fresh(size, device);
    std::lock_guard lock(blocks_->mutex);
    blocks_->capacity += size;
    blocks_->free[key].reserve(blocks_->free[key].capacity() + 1);  // so that giving back cannot throw
  }
  std::byte* data = block.get();
  return {data, [blocks = blocks_, key, held = std::move(block)](std::byte*) mutable {
            std::lock_guard lock(blocks->mutex);
            blocks->free[key].push_back(std::move(held));
          }};
}

size_t Arena::capacity() const {
  std::lock_guard lock(blocks_->mutex);
  return blocks_->capacity;
}

ArenaScope::ArenaScope(Arena* arena) : previous_(current_arena) { current_arena = arena; }
ArenaScope::~ArenaScope() { current_arena = previous_; }

}  // namespace ssm
