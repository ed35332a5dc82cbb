// A dense matrix to a packed one. Scales are searched (fit.h), so that the sum of importance (w - w')^2 over
// each group is small; without an importance every column counts the same. A q type's rows are what ggml
// reads.
//
// The same bits whatever the threads and the machine. Errors: a format that does not fit K or that is only
// read (q2_k, q3_k); an element that is not finite or too large for f16 scales, by row and column; an
// importance that is not K finite numbers of at least 0.
#pragma once

#include <span>

#include "ssm/quant/quantized_tensor.h"

namespace ssm {

// `weights` [N, K] f32, bf16 or f16 on the host, rows contiguous. `importance` [K]: how much an error in each
// column counts, as the mean square of what the column is multiplied by.
QuantizedTensor quantize(const Tensor& weights, const QuantFormat& format,
                         std::span<const float> importance = {});

// Whether quantize can write it.
bool is_writable(QuantType type);

}  // namespace ssm
