// The ids of words within one call of encode: a word that came before takes its ids from where they stand in
// the output.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

#include "ssm/text/vocab.h"

namespace ssm::text {

class WordIds {
 public:
  explicit WordIds(std::vector<int32_t>& ids) : ids_(ids), slots_(kFirstSlots) {}

  // Appends the ids of `word`, which must outlive this; encode() appends those of a word not seen before.
  template <class Encode>
  void append(std::string_view word, const Encode& encode) {
    if (word.size() > kLongest) return encode();
    const auto hash = static_cast<uint32_t>(hash_bytes(word));
    const size_t mask = slots_.size() - 1;
    size_t i = hash & mask;
    for (; slots_[i].count != kFree; i = (i + 1) & mask) {
      const Slot& slot = slots_[i];
      if (slot.hash == hash && slot.word == word) return repeat(slot.first, slot.count);
    }
    const size_t first = ids_.size();
    encode();
    const auto count = static_cast<uint32_t>(ids_.size() - first);
    if (words_ < kMaxWords && count != kFree) remember({word, first, count, hash}, i);
  }

 private:
  static constexpr size_t kFirstSlots = 512;
  static constexpr size_t kMaxWords = size_t{1} << 16;
  static constexpr size_t kLongest = 64;  // bytes of a word that is worth remembering
  static constexpr uint32_t kFree = 0;    // nor is a word without ids
  struct Slot {
    std::string_view word;
    size_t first = 0;
    uint32_t count = 0;
    uint32_t hash = 0;
  };

  void repeat(size_t first, size_t count) {
    const size_t at = ids_.size();
    ids_.resize(at + count);
    std::copy_n(ids_.begin() + static_cast<ptrdiff_t>(first), count,
                ids_.begin() + static_cast<ptrdiff_t>(at));
  }

  void remember(const Slot& slot, size_t at) {
    slots_[at] = slot;
    if (++words_ * 2 < slots_.size()) return;
    std::vector<Slot> old(slots_.size() * 2);
    old.swap(slots_);
    const size_t mask = slots_.size() - 1;
    for (const Slot& moved : old) {
      if (moved.count == kFree) continue;
      size_t i = moved.hash & mask;
      while (slots_[i].count != kFree) i = (i + 1) & mask;
      slots_[i] = moved;
    }
  }

  std::vector<int32_t>& ids_;
  std::vector<Slot> slots_;
  size_t words_ = 0;
};

}  // namespace ssm::text
