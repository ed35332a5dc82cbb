// KvCache: what attention keeps of the texts it has read, by slot: the keys, rotated, and the values of every
// token. It grows with a text, in pages of kPageTokens tokens, within a budget that caches may share. Pages
// that are full never change, so copies of a slot share them.
//
// A page holds for each of the Hk heads its keys, then its values. On a CPU keys lie transposed,
// [D, kPageTokens], values [kPageTokens, row_stride], f32; what is not there yet is zeros. On a card both are
// [kPageTokens, row_stride], of the activations' type; what lies behind D is zeros.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "ssm/core/tensor.h"
#include "ssm/ops/sequence_batch.h"

namespace ssm {

// Bytes that the pages of some caches may take together.
class KvBudget {
 public:
  explicit KvBudget(size_t bytes) : bytes_(bytes) {}
  size_t used() const { return used_; }
  size_t left() const { return bytes_ - used_; }
  void check_room(size_t bytes) const;  // throws Error where they are more than what is left

  // `bytes` counted for as long as they live: zeros from the heap, or of a card, where they are cut from
  // slabs that stay with the budget. Throws Error where that would be too many.
  static std::shared_ptr<std::byte> allocate(const std::shared_ptr<KvBudget>& budget, size_t bytes,
                                             Device device = kCpu);

 private:
  std::byte* take_from_slab(size_t bytes, Device device);

  size_t bytes_;
  std::atomic<size_t> used_ = 0;
  std::mutex mutex_;  // of what follows
  std::map<size_t, std::vector<std::byte*>> free_;
  std::vector<std::shared_ptr<std::byte>> slabs_;
};

// Where a cache's pages are, and of what type: f32 on a CPU.
struct KvStorage {
  Device device = kCpu;
  DType dtype = DType::f32;
  bool operator==(const KvStorage&) const = default;
};

class KvCache {
 public:
  static constexpr int64_t kPageTokens = 64;

  // `heads` Hk of `head_dim` D. Without a budget pages come from the current allocator, without a bound.
  KvCache(int64_t slots, int64_t heads, int64_t head_dim, std::shared_ptr<KvBudget> budget = nullptr,
          KvStorage storage = {});

  KvCache(const KvCache& other);  // the same texts, which from now on go their own ways
  KvCache& operator=(const KvCache&) = delete;

  int64_t slots() const { return static_cast<int64_t>(texts_.size()); }
  int64_t heads() const { return heads_; }
  int64_t head_dim() const { return head_dim_; }
  KvStorage storage() const { return storage_; }
  int64_t tokens(int64_t slot) const { return at(slot).tokens; }

  // Pages for `tokens` more. Throws Error past the budget; what was there is as it was.
  void reserve(int64_t slot, int64_t tokens);
  // Of a slot that `tokens` more were reserved for and written to.
  void added(int64_t slot, int64_t tokens) { at(slot).tokens += tokens; }
  void clear(int64_t slot) { at(slot) = {}; }
  // The text of `from`'s slot, of a cache of the same heads.
  void copy(int64_t slot, const KvCache& from, int64_t from_slot);

  // Outside of pages a slot's keys and values are [tokens, Hk, D] each.
  void read(int64_t slot, float* keys, float* values) const;
  void assign(int64_t slot, int64_t tokens, const float* keys, const float* values);

  std::byte* page_memory(int64_t slot, int64_t index) const {  // page_bytes() where the storage says
    return at(slot).pages[static_cast<size_t>(index)].get();
  }
  // On a CPU: one head of one page.
  float* page(int64_t slot, int64_t index, int64_t head) const {
    return reinterpret_cast<float*>(page_memory(slot, index)) + head * head_elements();
  }
  int64_t row_stride() const { return row_stride_; }
  int64_t page_bytes() const {
    return heads_ * head_elements() * static_cast<int64_t>(size_of(storage_.dtype));
  }
  // That reserve() would take for `tokens` more.
  size_t bytes_for(int64_t slot, int64_t tokens) const;

  // On a card kernels find pages through a table in its memory, at one address for as long as the cache
  // lives: of a slot, and an index below `capacity`, the address of a page, if it was reserved.
  struct Table {
    const uint64_t* pages;  // [slots, capacity]
    int64_t capacity;
  };
  const Table* table() const;  // brought up to date on the card's stream
  // [B] i64: the tokens of the batch's slots before it, or what the batch says of them.
  Tensor begins_on_device(const SequenceBatch& batch) const;
  int32_t* counters(int64_t per_slot);  // [slots, per_slot] of zeros, which kernels leave as zeros

 private:
  struct Text {
    std::vector<std::shared_ptr<std::byte>> pages;
    int64_t tokens = 0;
  };
  const Text& at(int64_t slot) const;
  Text& at(int64_t slot) { return const_cast<Text&>(std::as_const(*this).at(slot)); }
  // Of a head of a page: its keys, and with its values.
  int64_t key_elements() const { return kPageTokens * (storage_.device.is_cuda() ? row_stride_ : head_dim_); }
  int64_t head_elements() const { return key_elements() + kPageTokens * row_stride_; }
  std::shared_ptr<std::byte> new_page() const;
  Tensor page_on_host(int64_t slot, int64_t index) const;
  void changed(int64_t slot);

  int64_t heads_, head_dim_, row_stride_;
  KvStorage storage_;
  std::shared_ptr<KvBudget> budget_;
  std::vector<Text> texts_;

  struct OnCard {
    Tensor table, rows, counters;  // u8 [sizeof(Table)], i64 [slots, capacity], i32
    std::vector<bool> changed;     // slots whose row is not up to date
    bool any_changed = true;
  };
  mutable OnCard on_card_;
};

}  // namespace ssm
