// Checks that every op makes on its operands, with one wording: "op: name has shape [..], expected [..]".
#pragma once

#include <string_view>

#include "ssm/core/tensor.h"
#include "ssm/ops/sequence_batch.h"
#include "ssm/quant/weight.h"

namespace ssm {

// The op's first operand decides its device and the type of its activations: f32 on a CPU; f32, bf16 or f16
// on a card. Rows are contiguous.
void check_first(std::string_view op, std::string_view name, const Tensor& x, const Shape& shape);
// `x` is an activation like `first`: of this shape, of its device and type, rows contiguous.
void check_activation(std::string_view op, std::string_view name, const Tensor& x, const Shape& shape,
                      const Tensor& first);
// `x` is a parameter: f32, of this shape, on the device of `first`, rows contiguous.
void check_parameter(std::string_view op, std::string_view name, const Tensor& x, const Shape& shape,
                     const Tensor& first);
// The gradient of an activation or a parameter, which may be undefined: it is not wanted then.
void check_activation_gradient(std::string_view op, std::string_view name, const Tensor& dx,
                               const Shape& shape, const Tensor& first);
void check_parameter_gradient(std::string_view op, std::string_view name, const Tensor& dw,
                              const Shape& shape, const Tensor& first);
// `initial`, or what else is a state of each sequence, is undefined, or contiguous, f32, [sequences of the
// batch, row...] on the device of `first`.
void check_initial(std::string_view op, const Tensor& initial, const SequenceBatch& batch, const Shape& row,
                   const Tensor& first, std::string_view name = "initial");
// `state` is undefined, or a contiguous [slots > max_slot, row...] on the device of `first`: f32, or where
// `narrow` also bf16 or f16.
void check_state(std::string_view op, const Tensor& state, const SequenceBatch& batch, const Shape& row,
                 const Tensor& first, bool narrow = false);
// `weight` is a matrix of this shape on this device: packed, or of type `compute` and its rows contiguous.
void check_step_weight(std::string_view op, std::string_view name, const Weight& weight, const Shape& shape,
                       DType compute, Device device);
// A result may have this type on this device.
void check_result(std::string_view op, DType dtype, Device device);

}  // namespace ssm
