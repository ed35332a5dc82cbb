// A packed row back to f32: the meaning of every format of format.h, to the bit (an f32 multiply and an f32
// add or subtract a weight, never fused; ggml's values). The reference of the fast kernels, and the general
// path.
#pragma once

#include <cstddef>

#include "ssm/quant/quantized_tensor.h"

namespace ssm {

// `row` holds row_bytes(format, K) bytes, at any alignment; `out` takes K floats.
void dequantize_row(const QuantFormat& format, const std::byte* row, int64_t K, float* out);

Tensor dequantize(const QuantizedTensor& packed);  // f32 [N, K]; packed is on the host

}  // namespace ssm
