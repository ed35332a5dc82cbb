// Weight: a matrix [N, K] that `linear` and `embedding` multiply by: dense (the mapped file itself, f32, bf16
// or f16, rows contiguous) or packed.
#pragma once

#include <variant>

#include "ssm/core/tensor.h"
#include "ssm/quant/quantized_tensor.h"

namespace ssm {

using Weight = std::variant<Tensor, QuantizedTensor>;

bool defined(const Weight& weight);
const Shape& shape_of(const Weight& weight);
size_t bytes_of(const Weight& weight);  // resident bytes: what a decode step reads
Device device_of(const Weight& weight);
bool is_packed(const Weight& weight);
std::string type_name(const Weight& weight);  // "bf16", "q4_k", "int4 group 64", ...

// For who can use a dense matrix only: throws Error saying `what` cannot take a packed one.
const Tensor& dense(const Weight& weight, std::string_view what);

}  // namespace ssm
