// StatePool: the recurrent states of many sequences, all layers, by slot. A slot is a few megabytes whatever
// the sequence's length, so a conversation can be kept, forked and resumed at once.
#pragma once

#include <cstdint>
#include <vector>

#include "ssm/models/causal_lm.h"

namespace ssm {

class StatePool {
 public:
  // Room for `slots` sequences of `model`, on its device; SSM states stored as `ssm`.
  StatePool(const CausalLm& model, int64_t slots, DType ssm = DType::f32);

  int32_t acquire();  // a zeroed slot; throws Error when none is free
  void release(int32_t slot);
  int32_t fork(int32_t slot);  // a new slot with the same state
  void reset(int32_t slot);    // back to zeros
  void copy(int32_t from, int32_t to);

  // A slot's state in host memory, u8 [bytes_per_slot(wide)], and back. What is f32 in the pool is rounded to
  // `wide` on its way out where that is a type of 16 bits.
  Tensor copy_out(int32_t slot, DType wide = DType::f32) const;
  void copy_in(int32_t slot, const Tensor& state, DType wide = DType::f32);

  const ModelState& state() const { return state_; }
  int64_t capacity() const { return static_cast<int64_t>(used_.size()); }
  int64_t available() const;
  // On a card there is one slot more, never given out: rows that only fill up a captured batch read and write
  // it.
  int32_t scratch_slot() const { return static_cast<int32_t>(used_.size()); }
  int64_t rows() const { return capacity() + (device_.is_cuda() ? 1 : 0); }  // of each state tensor
  size_t bytes_per_slot(DType wide = DType::f32) const;

  // Calls f(layer, name, row) for each state tensor's row of a slot.
  template <class F>
  void for_each_row(int32_t slot, F&& f) const {
    for (size_t layer = 0; layer < state_.size(); ++layer) {
      state_[layer].for_each(
          [&](std::string_view name, const Tensor& t) { f(layer, name, t.select(0, slot)); });
    }
  }

 private:
  void check_used(int32_t slot) const;

  Device device_;
  std::vector<bool> used_;
  ModelState state_;
};

}  // namespace ssm
