// Mailbox: a few integers that a card leaves where the host sees them, without a copy or a wait of the
// stream. What a captured decode step hands over. In a build without CUDA there is none.
#pragma once

#ifdef SSM_CUDA

#include <cstdint>
#include <memory>
#include <span>

#include "ssm/core/tensor.h"

namespace ssm {

class Mailbox {
 public:
  explicit Mailbox(int64_t size);

  // Enqueues the delivery of `values` ([size] i32 of a card); may be captured.
  void enqueue(const Tensor& values) const;
  // Waits for the next delivery and takes its first values. Throws Error when the card failed before it.
  void take(std::span<int32_t> values);

 private:
  int64_t size_;
  std::shared_ptr<std::byte> host_;  // the number of the last delivery, then the values
  Tensor count_;                     // [1] i32 of the card: deliveries so far
  int32_t taken_ = 0;
};

}  // namespace ssm

#endif
