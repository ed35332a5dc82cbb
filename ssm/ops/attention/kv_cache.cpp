#include "ssm/ops/attention/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "ssm/core/error.h"

namespace ssm {
namespace {

constexpr int64_t kPad = 16;  // floats: the longest vector

int64_t pages_for(int64_t tokens) { return (tokens + KvCache::kPageTokens - 1) / KvCache::kPageTokens; }

}  // namespace

std::shared_ptr<std::byte> KvBudget::allocate(const std::shared_ptr<KvBudget>& budget, size_t bytes) {
  SSM_CHECK(bytes <= budget->left(),
            "the keys and values of attention would take more than the {} MiB that they may (--kv-memory)",
            budget->bytes() >> 20);
  const ArenaScope heap(nullptr);  // a page outlives any step
  std::shared_ptr<std::byte> memory = allocate_bytes(bytes);
  std::memset(memory.get(), 0, bytes);
  budget->used_ += bytes;
  std::byte* const raw = memory.get();
  return {raw, [budget, bytes, memory = std::move(memory)](std::byte*) mutable {
            memory.reset();
            budget->used_ -= bytes;
          }};
}

KvCache::KvCache(int64_t slots, int64_t heads, int64_t head_dim, std::shared_ptr<KvBudget> budget)
    : heads_(heads),
      head_dim_(head_dim),
      value_stride_((head_dim + kPad - 1) / kPad * kPad),
      budget_(std::move(budget)),
      texts_(static_cast<size_t>(slots)) {}

KvCache::KvCache(const KvCache& other)
    : KvCache(other.slots(), other.heads_, other.head_dim_, other.budget_) {
  for (int64_t slot = 0; slot < slots(); ++slot) copy(slot, other, slot);
}

const KvCache::Text& KvCache::at(int64_t slot) const {
  SSM_CHECK(slot >= 0 && slot < slots(), "slot {} of a cache of {}", slot, slots());
  return texts_[static_cast<size_t>(slot)];
}

std::shared_ptr<std::byte> KvCache::new_page() const {
  const auto bytes = static_cast<size_t>(page_bytes());
  if (budget_) return KvBudget::allocate(budget_, bytes);
  std::shared_ptr<std::byte> page = allocate_bytes(bytes);
  std::memset(page.get(), 0, bytes);
  return page;
}

size_t KvCache::bytes_for(int64_t slot, int64_t tokens) const {
  const Text& text = at(slot);
  const int64_t more = pages_for(text.tokens + tokens) - std::ssize(text.pages);
  return static_cast<size_t>(std::max<int64_t>(0, more) * page_bytes());
}

void KvCache::reserve(int64_t slot, int64_t tokens) {
  Text& text = at(slot);
  const size_t before = text.pages.size(), needed = static_cast<size_t>(pages_for(text.tokens + tokens));
  try {
    while (text.pages.size() < needed) text.pages.push_back(new_page());
  } catch (...) {
    text.pages.resize(before);
    throw;
  }
}

void KvCache::copy(int64_t slot, const KvCache& from, int64_t from_slot) {
  const Text& source = from.at(from_slot);
  Text copy{.pages = source.pages, .tokens = source.tokens};
  copy.pages.resize(static_cast<size_t>(pages_for(source.tokens)));  // without what is only reserved
  if (source.tokens % kPageTokens != 0) {
    std::shared_ptr<std::byte> last = new_page();
    std::memcpy(last.get(), copy.pages.back().get(), static_cast<size_t>(page_bytes()));
    copy.pages.back() = std::move(last);
  }
  at(slot) = std::move(copy);
}

void KvCache::read(int64_t slot, float* keys, float* values) const {
  for (int64_t t = 0; t < tokens(slot); ++t) {
    for (int64_t h = 0; h < heads_; ++h, keys += head_dim_, values += head_dim_) {
      const float* const from = page(slot, t / kPageTokens, h);
      const float* const value = from + head_dim_ * kPageTokens + t % kPageTokens * value_stride_;
      for (int64_t d = 0; d < head_dim_; ++d) keys[d] = from[d * kPageTokens + t % kPageTokens];
      std::copy_n(value, head_dim_, values);
    }
  }
}

void KvCache::assign(int64_t slot, int64_t tokens, const float* keys, const float* values) {
  clear(slot);
  reserve(slot, tokens);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t h = 0; h < heads_; ++h, keys += head_dim_, values += head_dim_) {
      float* const to = page(slot, t / kPageTokens, h);
      for (int64_t d = 0; d < head_dim_; ++d) to[d * kPageTokens + t % kPageTokens] = keys[d];
      std::copy_n(values, head_dim_, to + head_dim_ * kPageTokens + t % kPageTokens * value_stride_);
    }
  }
  added(slot, tokens);
}

}  // namespace ssm
