// A ragged batch: B sequences laid one after another along the time axis of tensors [T, ...], T their total
// length, none padded. Sequence b owns rows [offset(b), offset(b + 1)) and reads and updates row slot(b) of
// every state tensor, so that a changing batch copies no state.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ssm/core/tensor.h"

namespace ssm {

class SequenceBatch {
 public:
  // Lengths are at least 1; slots are distinct. Throws Error otherwise.
  SequenceBatch(std::span<const int64_t> lengths, std::span<const int32_t> slots);
  static SequenceBatch single(int64_t length, int32_t slot = 0);
  static SequenceBatch in_order(std::span<const int64_t> lengths);  // in slots 0, 1, 2, ...
  static SequenceBatch equal(int64_t sequences, int64_t length);    // the same, of one length
  static SequenceBatch steps(std::span<const int32_t> slots);       // one token each
  // Steps whose slots stand in a tensor of a card, [B] i32: a captured step replays with whatever it then
  // holds, which the caller answers for. slot() and max_slot() are not known. `positions` [B] i64, for
  // attention: how many tokens each slot's text has before; negative where a row only fills up the batch.
  static SequenceBatch steps_on_device(const Tensor& slots, const Tensor& positions = {});

  int64_t size() const { return std::ssize(offsets_) - 1; }  // B
  int64_t total() const { return offsets_.back(); }          // T
  int64_t offset(int64_t b) const { return offsets_[static_cast<size_t>(b)]; }
  int64_t length(int64_t b) const { return offset(b + 1) - offset(b); }
  int32_t slot(int64_t b) const { return slots_[static_cast<size_t>(b)]; }
  int32_t max_slot() const { return max_slot_; }
  bool is_step() const { return total() == size(); }
  const Tensor& positions() const { return positions_; }  // undefined but for steps_on_device()

  // The same on a card, uploaded at the first call: offsets [B + 1] i64, slots [B] i32.
  struct OnDevice {
    Tensor offsets, slots;
  };
  const OnDevice& on_device(Device device) const;

 private:
  SequenceBatch() = default;

  std::vector<int64_t> offsets_;  // B + 1
  std::vector<int32_t> slots_;    // B
  int32_t max_slot_ = 0;
  Tensor positions_;
  mutable OnDevice on_device_;
};

}  // namespace ssm
