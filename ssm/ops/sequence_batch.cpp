#include "ssm/ops/sequence_batch.h"

#include <algorithm>
#include <numeric>

#include "ssm/core/error.h"

namespace ssm {

SequenceBatch::SequenceBatch(std::span<const int64_t> lengths, std::span<const int32_t> slots)
    : offsets_{0}, slots_(slots.begin(), slots.end()) {
  SSM_CHECK(!lengths.empty() && lengths.size() == slots.size(), "a batch of {} lengths and {} slots",
            lengths.size(), slots.size());
  for (const int64_t n : lengths) {
    SSM_CHECK(n >= 1, "a sequence of length {} in a batch", n);
    offsets_.push_back(offsets_.back() + n);
  }
  std::vector<int32_t> sorted = slots_;
  std::sort(sorted.begin(), sorted.end());
  SSM_CHECK(sorted.front() >= 0, "slot {} in a batch", sorted.front());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  SSM_CHECK(twice == sorted.end(), "slot {} stands twice in a batch", *twice);
  max_slot_ = sorted.back();
}

SequenceBatch SequenceBatch::single(int64_t length, int32_t slot) {
  return SequenceBatch(std::span(&length, 1), std::span(&slot, 1));
}

SequenceBatch SequenceBatch::in_order(std::span<const int64_t> lengths) {
  std::vector<int32_t> slots(lengths.size());
  std::iota(slots.begin(), slots.end(), 0);
  return SequenceBatch(lengths, slots);
}

SequenceBatch SequenceBatch::equal(int64_t sequences, int64_t length) {
  return in_order(std::vector<int64_t>(static_cast<size_t>(sequences), length));
}

SequenceBatch SequenceBatch::steps(std::span<const int32_t> slots) {
  return SequenceBatch(std::vector<int64_t>(slots.size(), 1), slots);
}

SequenceBatch SequenceBatch::steps_on_device(const Tensor& slots, const Tensor& positions) {
  SSM_CHECK(slots.defined() && slots.rank() == 1 && slots.size(0) >= 1 && slots.dtype() == DType::i32,
            "slots of a batch have shape {}, expected i32 [B]", slots.shape());
  SequenceBatch batch;
  for (int64_t b = 0; b <= slots.size(0); ++b) batch.offsets_.push_back(b);
  SSM_CHECK(!positions.defined() || (positions.shape() == slots.shape() && positions.dtype() == DType::i64),
            "positions of a batch have shape {}, expected i64 {}", positions.shape(), slots.shape());
  batch.max_slot_ = -1;
  batch.positions_ = positions;
  batch.on_device(slots.device());
  batch.on_device_.slots = slots;
  return batch;
}

const SequenceBatch::OnDevice& SequenceBatch::on_device(Device device) const {
  if (!on_device_.offsets.defined()) {
    on_device_.offsets = Tensor::from_values<int64_t>(offsets_, {std::ssize(offsets_)}).to(device);
    on_device_.slots = Tensor::from_values<int32_t>(slots_, {std::ssize(slots_)}).to(device);
  }
  return on_device_;
}

}  // namespace ssm
