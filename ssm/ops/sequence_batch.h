// A ragged batch: B sequences laid one after another along the time axis of tensors [T, ...], T their total
// length, none padded. Sequence b owns rows [offset(b), offset(b + 1)) and reads and updates row slot(b) of
// every state tensor, so that a changing batch copies no state.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace ssm {

class SequenceBatch {
 public:
  // Lengths are at least 1; slots are distinct. Throws Error otherwise.
  SequenceBatch(std::span<const int64_t> lengths, std::span<const int32_t> slots);
  static SequenceBatch single(int64_t length, int32_t slot = 0);
  static SequenceBatch steps(std::span<const int32_t> slots);  // one token each

  int64_t size() const { return static_cast<int64_t>(slots_.size()); }  // B
  int64_t total() const { return offsets_.back(); }                     // T
  int64_t offset(int64_t b) const { return offsets_[static_cast<size_t>(b)]; }
  int64_t length(int64_t b) const { return offset(b + 1) - offset(b); }
  int32_t slot(int64_t b) const { return slots_[static_cast<size_t>(b)]; }
  int32_t max_slot() const { return max_slot_; }
  bool is_step() const { return total() == size(); }

 private:
  std::vector<int64_t> offsets_;  // B + 1
  std::vector<int32_t> slots_;    // B
  int32_t max_slot_ = 0;
};

}  // namespace ssm
