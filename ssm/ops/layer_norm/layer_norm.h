// Layer norms (Ba et al. 2016), in f32:
//
//   layer_norm      y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias
//   add_layer_norm  residual <- residual + x;  y = layer_norm(residual)
//
//   x        [T, M] f32, rows contiguous (a row stride is allowed)
//   residual [T, M] f32, likewise; updated in place, but where a tape records: then it becomes another tensor
//   weight, bias [M] f32
//   y        [T, M] f32
//
// A row's result does not depend on the batch or the threads, bit for bit. Errors: a shape that does not fit,
// by name; a tensor of a card, where layer norms do not run yet.
#pragma once

#include "ssm/core/tensor.h"

namespace ssm {

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps);
Tensor add_layer_norm(const Tensor& x, Tensor& residual, const Tensor& weight, const Tensor& bias, float eps);

// The gradients of layer_norm for dy [T, M]. With n = (x - mean) r, r = 1 / sqrt(variance + eps) and
// g = dy weight:
//
//   dx = r (g - mean(g) - n mean(g n))      dweight += sum of dy n      dbias += sum of dy, over the rows
//
// dx [T, M] is overwritten, dweight and dbias [M] are added to; an undefined one is not computed. A row of dx
// does not depend on the batch; sums over rows are taken in an order given by T alone.
struct LayerNormGrads {
  Tensor dx, dweight, dbias;
};
void layer_norm_backward(const Tensor& x, const Tensor& weight, float eps, const Tensor& dy,
                         const LayerNormGrads& grads);

}  // namespace ssm
