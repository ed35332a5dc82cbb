#include "ssm/runtime/state_pool.h"

#include <algorithm>
#include <cstring>

#include "ssm/core/parallel.h"

namespace ssm {
namespace {

DType stored_as(const Tensor& state, DType wide) {
  return state.dtype() == DType::f32 ? wide : state.dtype();
}

// In host memory by all threads: one alone does not reach what the memory gives, and the others wait for it.
void copy_state(std::byte* to, Device to_device, const std::byte* from, Device from_device, size_t bytes) {
  if (to_device.is_cuda() || from_device.is_cuda())
    return copy_bytes(to, to_device, from, from_device, bytes);
  constexpr int64_t kGrain = 32 << 10;
  parallel_for(static_cast<int64_t>(bytes), kGrain, [&](int64_t begin, int64_t end) {
    std::memcpy(to + begin, from + begin, static_cast<size_t>(end - begin));
  });
}

}  // namespace

StatePool::StatePool(const CausalLm& model, int64_t slots, DType ssm, size_t kv_bytes)
    : device_(model.device()),
      used_(static_cast<size_t>(slots)),
      budget_(model.has_attention() ? std::make_shared<KvBudget>(kv_bytes) : nullptr),
      state_(model.make_state(rows(), ssm, budget_)) {}

int32_t StatePool::acquire() {
  return acquire([&](int32_t slot) { reset(slot); });
}

int32_t StatePool::acquire(const std::function<void(int32_t)>& fill) {
  const auto free = std::find(used_.begin(), used_.end(), false);
  SSM_CHECK(free != used_.end(), "all {} state slots are in use", used_.size());
  *free = true;
  const auto slot = static_cast<int32_t>(free - used_.begin());
  try {
    fill(slot);
  } catch (...) {  // attention found no room
    release(slot);
    throw;
  }
  return slot;
}

void StatePool::release(int32_t slot) {
  check_used(slot);
  used_[static_cast<size_t>(slot)] = false;
  for (const MixerState& layer : state_) {
    if (layer.kv) layer.kv->clear(slot);
  }
}

int32_t StatePool::fork(int32_t slot) {
  check_used(slot);
  return acquire([&](int32_t made) { copy(slot, made); });
}

void StatePool::copy(int32_t from, int32_t to) {
  check_used(from);
  check_used(to);
  copy_slot(state_, from, state_, to);
}

Tensor StatePool::copy_out(int32_t slot, DType wide) const {
  check_used(slot);
  Tensor bytes = Tensor::empty({static_cast<int64_t>(bytes_of(slot, wide))}, DType::u8);
  std::byte* to = bytes.raw();
  const auto put = [&](const Tensor& values) {
    copy_state(to, kCpu, values.raw(), values.device(), values.bytes());
    to += values.bytes();
  };
  for (const MixerState& layer : state_) {
    layer.for_each([&](std::string_view, const Tensor& t) {
      const Tensor row = t.select(0, slot);
      const DType stored = stored_as(row, wide);
      put(stored == row.dtype() ? row : row.to(kCpu).to(stored));
    });
    if (!layer.kv) continue;
    const int64_t each = layer.kv->tokens(slot) * layer.kv->heads() * layer.kv->head_dim();
    const Tensor kept = Tensor::empty({2, each});  // keys, values
    layer.kv->read(slot, kept.data<float>(), kept.data<float>() + each);
    put(kept.to(wide));
  }
  return bytes;
}

void StatePool::copy_in(int32_t slot, const Tensor& state, DType wide) {
  check_used(slot);
  const size_t fixed = bytes_per_slot(wide), token = bytes_per_token(wide);
  const size_t more = std::max(state.bytes(), fixed) - fixed;
  SSM_CHECK(state.bytes() >= fixed && (token == 0 ? more == 0 : more % token == 0),
            "a state of {} bytes for a slot of {} and {} a token", state.bytes(), fixed, token);
  const int64_t tokens = token == 0 ? 0 : static_cast<int64_t>(more / token);
  for (const MixerState& layer : state_) {
    if (layer.kv) layer.kv->clear(slot);
  }
  reserve(slot, tokens);
  const std::byte* from = state.raw();
  const auto take = [&](const Tensor& to, Device device, DType stored) {
    if (stored == to.dtype()) {
      copy_state(to.raw(), device, from, kCpu, to.bytes());
      from += to.bytes();
      return;
    }
    const Tensor narrow = Tensor::empty(to.shape(), stored);  // a copy: `from` need not be aligned
    copy_bytes(narrow.raw(), kCpu, from, kCpu, narrow.bytes());
    from += narrow.bytes();
    copy_bytes(to.raw(), device, narrow.to(to.dtype()).raw(), kCpu, to.bytes());
  };
  for (const MixerState& layer : state_) {
    layer.for_each([&](std::string_view, const Tensor& t) {
      const Tensor row = t.select(0, slot);
      take(row, device_, stored_as(row, wide));
    });
    if (!layer.kv) continue;
    const int64_t each = tokens * layer.kv->heads() * layer.kv->head_dim();
    const Tensor kept = Tensor::empty({2, each});
    take(kept, kCpu, wide);
    layer.kv->assign(slot, tokens, kept.data<float>(), kept.data<float>() + each);
  }
}

void StatePool::reset(int32_t slot) {
  check_used(slot);
  for (const MixerState& layer : state_) layer.clear(slot);
}

void StatePool::reserve(int32_t slot, int64_t tokens) {
  check_used(slot);
  if (!budget_) return;
  size_t bytes = 0;
  for (const MixerState& layer : state_) {
    if (layer.kv) bytes += layer.kv->bytes_for(slot, tokens);
  }
  budget_->check_room(bytes);
  for (const MixerState& layer : state_) {
    if (layer.kv) layer.kv->reserve(slot, tokens);
  }
}

int64_t StatePool::available() const { return std::count(used_.begin(), used_.end(), false); }

size_t StatePool::bytes_per_slot(DType wide) const {
  size_t bytes = 0;
  for_each_row(0, [&](size_t, std::string_view, const Tensor& row) {
    bytes += static_cast<size_t>(row.numel()) * size_of(stored_as(row, wide));
  });
  return bytes;
}

size_t StatePool::bytes_per_token(DType wide) const {
  int64_t floats = 0;
  for (const MixerState& layer : state_) {
    if (layer.kv) floats += 2 * layer.kv->heads() * layer.kv->head_dim();
  }
  return static_cast<size_t>(floats) * size_of(wide);
}

size_t StatePool::kv_bytes_per_token() const {
  size_t bytes = 0;
  for (const MixerState& layer : state_) {
    if (layer.kv)
      bytes += static_cast<size_t>(2 * layer.kv->heads() * layer.kv->head_dim()) *
               size_of(layer.kv->storage().dtype);
  }
  return bytes;
}

int64_t StatePool::attention_layers() const {
  return std::count_if(state_.begin(), state_.end(),
                       [](const MixerState& layer) { return layer.kv != nullptr; });
}

size_t StatePool::bytes_of(int32_t slot, DType wide) const {
  return bytes_per_slot(wide) + static_cast<size_t>(kept_tokens(slot)) * bytes_per_token(wide);
}

int64_t StatePool::kept_tokens(int32_t slot) const {
  const auto attending = std::find_if(state_.begin(), state_.end(), [](const MixerState& l) { return l.kv; });
  return attending == state_.end() ? 0 : attending->kv->tokens(slot);
}

void StatePool::added(int32_t slot) {
  for (const MixerState& layer : state_) {
    if (layer.kv) layer.kv->added(slot, 1);
  }
}

void StatePool::update_tables() const {
  for (const MixerState& layer : state_) {
    if (layer.kv) layer.kv->table();
  }
}

void StatePool::check_used(int32_t slot) const {
  SSM_CHECK(slot >= 0 && slot < capacity() && used_[static_cast<size_t>(slot)], "state slot {} is not in use",
            slot);
}

}  // namespace ssm
