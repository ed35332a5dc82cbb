// gradient_norm: the Euclidean norm over all of a model's gradients, and the factor that clips them to it.
//
//   norm  = sqrt(the sum of g^2 over every element of every tensor)
//   scale = min(1, max_norm / (norm + 1e-6))      as torch.nn.utils.clip_grad_norm_; 1 where max_norm is 0
//
//   gradients   f32 on one device, each without gaps (adamw.h)
//   norm, scale [1] f32 on that device, so that adamw takes scale without anyone waiting for it
//
// Squares are added in f64, in an order that depends on the sizes alone.
// Where a gradient is not finite, neither is the norm, and scale is NaN.
#pragma once

#include <span>

#include "ssm/core/tensor.h"

namespace ssm {

struct GradientNorm {
  Tensor norm, scale;  // [1] f32
};

GradientNorm gradient_norm(std::span<const Tensor> gradients, float max_norm);

}  // namespace ssm
