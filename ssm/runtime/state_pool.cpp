#include "ssm/runtime/state_pool.h"

#include <algorithm>

namespace ssm {
namespace {

DType stored_as(const Tensor& state, DType wide) {
  return state.dtype() == DType::f32 ? wide : state.dtype();
}

}  // namespace

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

Tensor StatePool::copy_out(int32_t slot, DType wide) const {
  check_used(slot);
  Tensor bytes = Tensor::empty({static_cast<int64_t>(bytes_per_slot(wide))}, DType::u8);
  std::byte* to = bytes.raw();
  for_each_row(slot, [&](size_t, std::string_view, const Tensor& row) {
    const DType stored = stored_as(row, wide);
    const Tensor values = stored == row.dtype() ? row : row.to(kCpu).to(stored);
    copy_bytes(to, kCpu, values.raw(), values.device(), values.bytes());
    to += values.bytes();
  });
  return bytes;
}

void StatePool::copy_in(int32_t slot, const Tensor& state, DType wide) {
  check_used(slot);
  SSM_CHECK(state.bytes() == bytes_per_slot(wide), "a state of {} bytes for a slot of {}", state.bytes(),
            bytes_per_slot(wide));
  const std::byte* from = state.raw();
  for_each_row(slot, [&](size_t, std::string_view, const Tensor& row) {
    const DType stored = stored_as(row, wide);
    const size_t size = static_cast<size_t>(row.numel()) * size_of(stored);
    if (stored == row.dtype()) {
      copy_bytes(row.raw(), device_, from, kCpu, size);
    } else {
      const Tensor values = Tensor::from_memory(from, row.shape(), stored, nullptr).to(row.dtype());
      copy_bytes(row.raw(), device_, values.raw(), kCpu, values.bytes());
    }
    from += size;
  });
}

void StatePool::reset(int32_t slot) {
  check_used(slot);
  for_each_row(slot, [&](size_t, std::string_view, const Tensor& row) {
    zero_bytes(row.raw(), device_, row.bytes());
  });
}

int64_t StatePool::available() const { return std::count(used_.begin(), used_.end(), false); }

size_t StatePool::bytes_per_slot(DType wide) const {
  size_t bytes = 0;
  for_each_row(0, [&](size_t, std::string_view, const Tensor& row) {
    bytes += static_cast<size_t>(row.numel()) * size_of(stored_as(row, wide));
  });
  return bytes;
}

void StatePool::check_used(int32_t slot) const {
  SSM_CHECK(slot >= 0 && slot < capacity() && used_[static_cast<size_t>(slot)], "state slot {} is not in use",
            slot);
}

}  // namespace ssm
