// KvCache: what attention keeps of the texts it has read, by slot: the keys, rotated, and the values of every
// token. It grows with a text, in pages of kPageTokens tokens, within a budget that caches may share. Pages
// that are full never change, so copies of a slot share them.
//
// A page holds for each of the Hk heads its keys transposed, [D, kPageTokens], then its values,
// [kPageTokens, padded D], f32; columns and rows of tokens that are not there yet are zeros.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "ssm/core/allocator.h"

namespace ssm {

// Bytes that the pages of some caches may take together.
class KvBudget {
 public:
  explicit KvBudget(size_t bytes) : bytes_(bytes) {}
  size_t bytes() const { return bytes_; }
  size_t used() const { return used_; }
  size_t left() const { return bytes_ - used_; }

  // `bytes` of zeros from the heap, counted for as long as they live. Throws Error where that would be too
  // many.
  static std::shared_ptr<std::byte> allocate(const std::shared_ptr<KvBudget>& budget, size_t bytes);

 private:
  size_t bytes_;
  std::atomic<size_t> used_ = 0;
};

class KvCache {
 public:
  static constexpr int64_t kPageTokens = 64;

  // `heads` Hk of `head_dim` D. Without a budget pages come from the current allocator, without a bound.
  KvCache(int64_t slots, int64_t heads, int64_t head_dim, std::shared_ptr<KvBudget> budget = nullptr);

  KvCache(const KvCache& other);  // the same texts, which from now on go their own ways
  KvCache& operator=(const KvCache&) = delete;

  int64_t slots() const { return static_cast<int64_t>(texts_.size()); }
  int64_t heads() const { return heads_; }
  int64_t head_dim() const { return head_dim_; }
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

  // One head of one page: keys [D, kPageTokens], then values [kPageTokens, value_stride].
  float* page(int64_t slot, int64_t index, int64_t head) const {
    return reinterpret_cast<float*>(at(slot).pages[static_cast<size_t>(index)].get()) + head * head_floats();
  }
  int64_t value_stride() const { return value_stride_; }
  int64_t page_bytes() const { return heads_ * head_floats() * static_cast<int64_t>(sizeof(float)); }
  // That reserve() would take for `tokens` more.
  size_t bytes_for(int64_t slot, int64_t tokens) const;

 private:
  struct Text {
    std::vector<std::shared_ptr<std::byte>> pages;
    int64_t tokens = 0;
  };
  const Text& at(int64_t slot) const;
  Text& at(int64_t slot) { return const_cast<Text&>(std::as_const(*this).at(slot)); }
  int64_t head_floats() const { return kPageTokens * (head_dim_ + value_stride_); }
  std::shared_ptr<std::byte> new_page() const;

  int64_t heads_, head_dim_, value_stride_;
  std::shared_ptr<KvBudget> budget_;
  std::vector<Text> texts_;
};

}  // namespace ssm
