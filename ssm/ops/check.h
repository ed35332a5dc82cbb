// Checks that every op makes on its operands, with one wording: "op: name has shape [..], expected [..]".
#pragma once

#include <string_view>

#include "ssm/core/tensor.h"
#include "ssm/ops/sequence_batch.h"

namespace ssm {

// `x` is an f32 tensor of this shape whose last dimension is contiguous.
void check_operand(std::string_view op, std::string_view name, const Tensor& x, const Shape& shape);
// `state` is undefined, or a contiguous f32 [slots > max_slot, row...].
void check_state(std::string_view op, const Tensor& state, const SequenceBatch& batch, const Shape& row);

}  // namespace ssm
