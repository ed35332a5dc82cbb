#include "ssm/runtime/state_pool.h"

#include <algorithm>

namespace ssm {

StatePool::StatePool(const CausalLm& model, int64_t slots, DType ssm)
    : device_(model.device()), used_(static_cast<size_t>(slots)), state_(model.make_state(rows(), ssm)) {}

int32_t StatePool::acquire() {
  const auto free = std::find(used_.begin(), used_.end(), false);
  SSM_CHECK(free != used_.end(), "all {} state slots are in use", used_.size());
  *free = true;
  const auto slot = static_cast<int32_t>(free - used_.begin());
  reset(slot);
  return slot;
}

void StatePool::release(int32_t slot) {
  check_used(slot);
  used_[static_cast<size_t>(slot)] = false;
}

int32_t StatePool::fork(int32_t slot) {
  check_used(slot);
  const int32_t made = acquire();
  copy(slot, made);
  return made;
}

void StatePool::copy(int32_t from, int32_t to) {
  check_used(from);
  check_used(to);
  copy_slot(state_, from, state_, to);
}

Tensor StatePool::copy_out(int32_t slot) const {
  check_used(slot);
  Tensor bytes = Tensor::empty({static_cast<int64_t>(bytes_per_slot())}, DType::u8);
  std::byte* to = bytes.raw();
  for_each_row(slot, [&](size_t, std::string_view, const Tensor& row) {
    copy_bytes(to, kCpu, row.raw(), device_, row.bytes());
    to += row.bytes();
  });
  return bytes;
}

void StatePool::copy_in(int32_t slot, const Tensor& state) {
  check_used(slot);
  SSM_CHECK(state.bytes() == bytes_per_slot(), "a state of {} bytes for a slot of {}", state.bytes(),
            bytes_per_slot());
  const std::byte* from = state.raw();
  for_each_row(slot, [&](size_t, std::string_view, const Tensor& row) {
    copy_bytes(row.raw(), device_, from, kCpu, row.bytes());
    from += row.bytes();
  });
}

void StatePool::reset(int32_t slot) {
  check_used(slot);
  for_each_row(slot, [&](size_t, std::string_view, const Tensor& row) {
    zero_bytes(row.raw(), device_, row.bytes());
  });
}

int64_t StatePool::available() const { return std::count(used_.begin(), used_.end(), false); }

size_t StatePool::bytes_per_slot() const {
  size_t bytes = 0;
  for (const MixerState& layer : state_) {
    layer.for_each([&](std::string_view, const Tensor& t) { bytes += t.select(0, 0).bytes(); });
  }
  return bytes;
}

void StatePool::check_used(int32_t slot) const {
  SSM_CHECK(slot >= 0 && slot < capacity() && used_[static_cast<size_t>(slot)], "state slot {} is not in use",
            slot);
}

}  // namespace ssm
