// The tables of a BPE model: strings to ids, and pairs of ids to merges. Flat, so that a vocabulary of 50,000
// loads in milliseconds.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ssm::text {

uint64_t hash_bytes(std::string_view bytes);

// Distinct strings with their ids.
class Vocab {
 public:
  void reserve(size_t bytes, size_t entries);
  void add(std::string_view token, int32_t id);
  // Builds the table. Returns a token that was added twice, if any.
  std::optional<std::string> index();

  std::optional<int32_t> find(std::string_view token) const {
    const auto entry = find_entry(token);
    return entry ? std::optional(entries_[*entry].id) : std::nullopt;
  }
  // The number of the token, which is quickest if it is `guess`.
  std::optional<size_t> find_entry(std::string_view token, size_t guess = ~size_t{0}) const;
  size_t count() const { return entries_.size(); }
  int32_t id(size_t entry) const { return entries_[entry].id; }
  std::string_view token(size_t entry) const {
    return std::string_view(bytes_).substr(entries_[entry].begin, entries_[entry].size);
  }

 private:
  struct Entry {
    size_t begin;
    uint32_t size;
    int32_t id;
  };
  // In a table a token stands as its entry + 1 and, so that others need not be looked up, half of its hash.
  struct Slot {
    uint32_t hash = 0;
    uint32_t entry = 0;  // 0: free
  };
  std::string bytes_;
  std::vector<Entry> entries_;
  std::vector<Slot> slots_;
};

struct Merge {
  uint32_t rank;
  int32_t id;  // what the pair becomes
};

class MergeTable {
 public:
  void reserve(size_t merges);
  // A pair named again takes the later rank, as in the reference.
  void add(int32_t left, int32_t right, Merge merge);

  const Merge* find(int32_t left, int32_t right) const {
    if (slots_.empty()) return nullptr;
    const uint64_t key = key_of(left, right);
    for (size_t i = slot_of(key);; i = (i + 1) & mask_) {
      if (slots_[i].key == key) return &slots_[i].merge;
      if (slots_[i].key == kFree) return nullptr;
    }
  }

 private:
  static constexpr uint64_t kFree = ~uint64_t{0};
  struct Slot {
    uint64_t key = kFree;
    Merge merge{};
  };
  static uint64_t key_of(int32_t left, int32_t right) {
    return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
  }
  size_t slot_of(uint64_t key) const {
    const uint64_t mixed = key * 0x9E3779B97F4A7C15u;
    return static_cast<size_t>(mixed ^ (mixed >> 29)) & mask_;
  }
  std::vector<Slot> slots_;
  size_t mask_ = 0;
};

}  // namespace ssm::text
