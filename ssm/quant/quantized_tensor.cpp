#include "ssm/quant/quantized_tensor.h"

namespace ssm {

QuantizedTensor packed_view(const QuantFormat& format, const Shape& shape, Tensor bytes) {
  SSM_CHECK(shape.rank() == 2, "a tensor {} cannot be packed as {}: it is no matrix", shape, name_of(format));
  const Shape expected{shape[0], row_bytes(format, shape[1])};
  SSM_CHECK(bytes.dtype() == DType::u8 && bytes.contiguous() && bytes.shape() == expected,
            "{} of {} takes bytes {}, not {} {}", name_of(format), shape, expected, name_of(bytes.dtype()),
            bytes.shape());
  return {format, shape, std::move(bytes)};
}

}  // namespace ssm
