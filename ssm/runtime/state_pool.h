// StatePool: the states of many sequences, all layers, by slot. A recurrent state is a few megabytes whatever
// the sequence's length, so a conversation can be kept, forked and resumed at once. What attention keeps
// grows with the text, within a bound for the whole pool.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "ssm/models/causal_lm.h"

namespace ssm {

class StatePool {
 public:
  // Room for `slots` sequences of `model`, on its device; SSM states stored as `ssm`; at most `kv_bytes` of
  // keys and values.
  StatePool(const CausalLm& model, int64_t slots, DType ssm = DType::f32,
            size_t kv_bytes = std::numeric_limits<size_t>::max());

  int32_t acquire();                                          // a zeroed slot; throws Error when none is free
  int32_t acquire(const std::function<void(int32_t)>& fill);  // one whose whole state fill(slot) sets
  void release(int32_t slot);
  int32_t fork(int32_t slot);  // a new slot with the same state
  void reset(int32_t slot);    // back to zeros
  void copy(int32_t from, int32_t to);

  // A slot's state in host memory, u8 [bytes_of(slot, wide)]: layer by layer its tensors' rows, then the keys
  // and the values of attention, [tokens, Hk, D] each; and back. What is f32 in the pool is rounded to `wide`
  // on its way out where that is a type of 16 bits.
  Tensor copy_out(int32_t slot, DType wide = DType::f32) const;
  void copy_in(int32_t slot, const Tensor& state, DType wide = DType::f32);

  // Memory for `tokens` more of a text, where attention keeps any. Throws Error past the bound; nothing has
  // changed then.
  void reserve(int32_t slot, int64_t tokens);
  bool has_room(size_t bytes) const { return !budget_ || bytes <= budget_->left(); }
  // Of steps that a card replays (SequenceBatch::positions), where attention keeps any: what the slot's text
  // has so far; a token more, which there was room for; and the tables of pages, brought up to date.
  int64_t kept_tokens(int32_t slot) const;
  void added(int32_t slot);
  void update_tables() const;

  const ModelState& state() const { return state_; }
  int64_t capacity() const { return static_cast<int64_t>(used_.size()); }
  int64_t available() const;
  // On a card there is one slot more, never given out: rows that only fill up a captured batch read and write
  // it.
  int32_t scratch_slot() const { return static_cast<int32_t>(used_.size()); }
  int64_t rows() const { return capacity() + (device_.is_cuda() ? 1 : 0); }  // of each state tensor
  size_t bytes_per_slot(DType wide = DType::f32) const;   // of a text's state whatever its length
  size_t bytes_per_token(DType wide = DType::f32) const;  // and of each token that attention has read
  size_t kv_bytes_per_token() const;                      // the same as the pool keeps it
  int64_t attention_layers() const;
  size_t bytes_of(int32_t slot, DType wide = DType::f32) const;

  // Calls f(layer, name, row) for each state tensor's row of a slot; not for what attention keeps.
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
  std::shared_ptr<KvBudget> budget_;  // null: the model has no attention
  ModelState state_;
};

}  // namespace ssm
