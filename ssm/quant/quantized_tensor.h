// QuantizedTensor: a matrix [N, K] in a packed format. A cheap handle, like Tensor.
#pragma once

#include "ssm/core/tensor.h"
#include "ssm/quant/format.h"

namespace ssm {

struct QuantizedTensor {
  QuantFormat format;
  Shape shape;   // [N, K]
  Tensor bytes;  // u8 [N, row_bytes(format, K)], contiguous; on a card as card_layout.h says

  Device device() const { return bytes.device(); }
};

// Over bytes that are there: a mapped file's. Throws Error where they do not fit.
QuantizedTensor packed_view(const QuantFormat& format, const Shape& shape, Tensor bytes);

}  // namespace ssm
