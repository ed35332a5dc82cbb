// Weight: a matrix [N, K] that `linear` and `embedding` multiply by. Packed (quantized) forms are further
// alternatives of the variant; a dense one is the mapped file itself, f32, bf16 or f16, rows contiguous.
#pragma once

#include <variant>

#include "ssm/core/tensor.h"

namespace ssm {

using Weight = std::variant<Tensor>;

bool defined(const Weight& weight);
const Shape& shape_of(const Weight& weight);
size_t bytes_of(const Weight& weight);  // resident bytes: what a decode step reads
Device device_of(const Weight& weight);
std::string_view type_name(const Weight& weight);  // "bf16", ...

}  // namespace ssm
