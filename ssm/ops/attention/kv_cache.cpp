#include "ssm/ops/attention/kv_cache.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <utility>

#include "ssm/core/error.h"

namespace ssm {
namespace {

constexpr int64_t kPad = 16;        // floats: the longest vector
constexpr size_t kLeastPages = 16;  // of a row of the table
constexpr size_t kSlabBytes = size_t{32} << 20;

int64_t pages_for(int64_t tokens) { return (tokens + KvCache::kPageTokens - 1) / KvCache::kPageTokens; }

}  // namespace

void KvBudget::check_room(size_t bytes) const {
  SSM_CHECK(bytes <= left(),
            "the keys and values of attention would take more than the {} MiB that they may (--kv-memory)",
            bytes_ >> 20);
}

std::byte* KvBudget::take_from_slab(size_t bytes, Device device) {
  const std::lock_guard lock(mutex_);
  std::vector<std::byte*>& free = free_[bytes];
  if (free.empty()) {
    const size_t pages = std::clamp<size_t>(kSlabBytes / bytes, 1, std::max<size_t>(1, left() / bytes));
    slabs_.push_back(allocate_bytes(pages * bytes, device));
    zero_bytes(slabs_.back().get(), device, pages * bytes);  // what lies behind D stays so
    for (size_t i = pages; i-- > 0;) free.push_back(slabs_.back().get() + i * bytes);
  }
  std::byte* const page = free.back();
  free.pop_back();
  return page;
}

std::shared_ptr<std::byte> KvBudget::allocate(const std::shared_ptr<KvBudget>& budget, size_t bytes,
                                              Device device) {
  budget->check_room(bytes);
  const ArenaScope heap(nullptr);  // a page outlives any step
  if (device.is_cuda()) {
    std::byte* const page = budget->take_from_slab(bytes, device);
    budget->used_ += bytes;
    return {page, [budget, bytes](std::byte* given) {
              const std::lock_guard lock(budget->mutex_);
              budget->free_[bytes].push_back(given);
              budget->used_ -= bytes;
            }};
  }
  std::shared_ptr<std::byte> memory = allocate_bytes(bytes);
  std::memset(memory.get(), 0, bytes);
  budget->used_ += bytes;
  std::byte* const raw = memory.get();
  return {raw, [budget, bytes, memory = std::move(memory)](std::byte*) mutable {
            memory.reset();
            budget->used_ -= bytes;
          }};
}

KvCache::KvCache(int64_t slots, int64_t heads, int64_t head_dim, std::shared_ptr<KvBudget> budget,
                 KvStorage storage)
    : heads_(heads),
      head_dim_(head_dim),
      row_stride_((head_dim + kPad - 1) / kPad * kPad),
      storage_(storage),
      budget_(std::move(budget)),
      texts_(static_cast<size_t>(slots)) {
  on_card_.changed.resize(texts_.size(), true);
}

KvCache::KvCache(const KvCache& other)
    : KvCache(other.slots(), other.heads_, other.head_dim_, other.budget_, other.storage_) {
  for (int64_t slot = 0; slot < slots(); ++slot) copy(slot, other, slot);
}

const KvCache::Text& KvCache::at(int64_t slot) const {
  SSM_CHECK(slot >= 0 && slot < slots(), "slot {} of a cache of {}", slot, slots());
  return texts_[static_cast<size_t>(slot)];
}

std::shared_ptr<std::byte> KvCache::new_page() const {
  const auto bytes = static_cast<size_t>(page_bytes());
  if (budget_) return KvBudget::allocate(budget_, bytes, storage_.device);
  std::shared_ptr<std::byte> page = allocate_bytes(bytes, storage_.device);
  zero_bytes(page.get(), storage_.device, bytes);
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
  if (needed <= before) return;
  changed(slot);
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
    copy_bytes(last.get(), storage_.device, copy.pages.back().get(), storage_.device,
               static_cast<size_t>(page_bytes()));
    copy.pages.back() = std::move(last);
  }
  at(slot) = std::move(copy);
  changed(slot);
}

// [Hk, 2, kPageTokens, row_stride] f32, of a card.
Tensor KvCache::page_on_host(int64_t slot, int64_t index) const {
  const Tensor page = Tensor::empty({heads_, 2, kPageTokens, row_stride_}, storage_.dtype);
  copy_bytes(page.raw(), kCpu, page_memory(slot, index), storage_.device, page.bytes());
  return page.to(DType::f32);
}

void KvCache::read(int64_t slot, float* keys, float* values) const {
  const bool on_card = storage_.device.is_cuda();
  const int64_t key_row = on_card ? row_stride_ : 1, key_column = on_card ? 1 : kPageTokens;
  Tensor page_copy;
  for (int64_t t = 0; t < tokens(slot); ++t) {
    const int64_t index = t / kPageTokens, row = t % kPageTokens;
    if (on_card && row == 0) page_copy = page_on_host(slot, index);
    for (int64_t h = 0; h < heads_; ++h, keys += head_dim_, values += head_dim_) {
      const float* const from =
          on_card ? page_copy.data<float>() + h * head_elements() : page(slot, index, h);
      for (int64_t d = 0; d < head_dim_; ++d) keys[d] = from[row * key_row + d * key_column];
      std::copy_n(from + key_elements() + row * row_stride_, head_dim_, values);
    }
  }
}

void KvCache::assign(int64_t slot, int64_t tokens, const float* keys, const float* values) {
  clear(slot);
  reserve(slot, tokens);
  const bool on_card = storage_.device.is_cuda();
  const int64_t key_row = on_card ? row_stride_ : 1, key_column = on_card ? 1 : kPageTokens;
  Tensor page_copy;
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t index = t / kPageTokens, row = t % kPageTokens;
    if (on_card && row == 0) page_copy = Tensor::zeros({heads_, 2, kPageTokens, row_stride_});
    for (int64_t h = 0; h < heads_; ++h, keys += head_dim_, values += head_dim_) {
      float* const to = on_card ? page_copy.data<float>() + h * head_elements() : page(slot, index, h);
      for (int64_t d = 0; d < head_dim_; ++d) to[row * key_row + d * key_column] = keys[d];
      std::copy_n(values, head_dim_, to + key_elements() + row * row_stride_);
    }
    if (on_card && (row + 1 == kPageTokens || t + 1 == tokens)) {
      const Tensor narrow = page_copy.to(storage_.dtype);
      copy_bytes(page_memory(slot, index), storage_.device, narrow.raw(), kCpu, narrow.bytes());
    }
  }
  added(slot, tokens);
}

void KvCache::changed(int64_t slot) {
  on_card_.changed[static_cast<size_t>(slot)] = true;
  on_card_.any_changed = true;
}

const KvCache::Table* KvCache::table() const {
  OnCard& card = on_card_;
  if (card.any_changed) {
    std::optional<ArenaScope> heap;  // what outlives a step, as a pool's cache does, is not a step's memory
    if (budget_) heap.emplace(nullptr);
    size_t most = 1;
    for (const Text& text : texts_) most = std::max(most, text.pages.size());
    const Device device = storage_.device;
    if (!card.rows.defined() || card.rows.size(1) < static_cast<int64_t>(most)) {
      card.rows = Tensor::zeros({slots(), static_cast<int64_t>(std::bit_ceil(std::max(most, kLeastPages)))},
                                DType::i64, device);
      if (!card.table.defined()) card.table = Tensor::empty({sizeof(Table)}, DType::u8, device);
      const Table table{reinterpret_cast<const uint64_t*>(card.rows.raw()), card.rows.size(1)};
      copy_bytes(card.table.raw(), device, &table, kCpu, sizeof table);
      card.changed.assign(card.changed.size(), true);
    }
    std::vector<const std::byte*> row;
    for (size_t slot = 0; slot < texts_.size(); ++slot) {
      if (!card.changed[slot] || texts_[slot].pages.empty()) continue;
      row.clear();
      for (const auto& page : texts_[slot].pages) row.push_back(page.get());
      copy_bytes(card.rows.select(0, static_cast<int64_t>(slot)).raw(), device, row.data(), kCpu,
                 row.size() * sizeof row[0]);
    }
    card.changed.assign(card.changed.size(), false);
    card.any_changed = false;
  }
  return reinterpret_cast<const Table*>(card.table.raw());
}

Tensor KvCache::begins_on_device(const SequenceBatch& batch) const {
  if (batch.positions().defined()) return batch.positions();
  std::vector<int64_t> begins;
  for (int64_t b = 0; b < batch.size(); ++b) begins.push_back(tokens(batch.slot(b)));
  return Tensor::from_values<int64_t>(begins, {batch.size()}).to(storage_.device);
}

int32_t* KvCache::counters(int64_t per_slot) {
  Tensor& counters = on_card_.counters;
  if (!counters.defined()) {
    std::optional<ArenaScope> heap;
    if (budget_) heap.emplace(nullptr);
    counters = Tensor::zeros({slots(), per_slot}, DType::i32, storage_.device);
  }
  return counters.data<int32_t>();
}

}  // namespace ssm
