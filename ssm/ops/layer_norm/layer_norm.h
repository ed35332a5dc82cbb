// Layer norms (Ba et al. 2016), in f32:
//
//   layer_norm      y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias
//   add_layer_norm  residual <- residual + x;  y = layer_norm(residual)
//   layer_norms     the same, and a second norm of the residual; where x is undefined nothing is added
//
//   x        [T, M] f32 (on a card also bf16 or f16), rows contiguous (a row stride is allowed)
//   residual [T, M] f32, likewise; updated in place, but where a tape records: then it becomes another tensor
//   weight, bias [M] f32
//   y        [T, M] `result`, or x's type
//
// A row's result does not depend on the batch or the threads, bit for bit. Errors: a shape that does not fit,
// by name.
#pragma once

#include <optional>
#include <utility>

#include "ssm/core/tensor.h"

namespace ssm {

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float eps,
                  std::optional<DType> result = {});
Tensor add_layer_norm(const Tensor& x, Tensor& residual, const Tensor& weight, const Tensor& bias, float eps,
                      std::optional<DType> result = {});

// Of a layer whose MLP stands beside its mixer. Bits are those of the norms one by one.
struct LayerNormParameters {
  Tensor weight, bias;
  float eps;
};
std::pair<Tensor, Tensor> layer_norms(const Tensor& x, Tensor& residual, const LayerNormParameters& first,
                                      const LayerNormParameters& second, std::optional<DType> result = {});

// Their gradients. With u what is normed (x; the updated residual), n = (u - mean) r,
// r = 1 / sqrt(variance + eps) and g = dy weight:
//
//   du = r (g - mean(g) - n mean(g n))      dweight += sum of dy n      dbias += sum of dy, over the rows
//
//   layer_norm      dx = du
//   add_layer_norm  dresidual <- dresidual + du, and dx the same: `residual` is the updated one; dresidual
//                   comes with its gradient from above and leaves as that of the residual before and of x
//
//   dy            [T, M] f32 (on a card of y's type), rows contiguous (a row stride is allowed)
//   dx            [T, M] of x's type, likewise, overwritten; in add_layer_norm f32, or on a card 16 bits
//   dresidual     [T, M] f32, likewise
//   dweight, dbias [M]   f32, added to
//
// An undefined one of dx, dweight and dbias is not computed. A row of dx and dresidual does not depend on the
// batch; sums over rows are taken in an order given by T alone (on a card by T and the card).
struct LayerNormGrads {
  Tensor dx, dweight, dbias;
};
void layer_norm_backward(const Tensor& x, const Tensor& weight, float eps, const Tensor& dy,
                         const LayerNormGrads& grads);
void add_layer_norm_backward(const Tensor& residual, const Tensor& weight, float eps, const Tensor& dy,
                             const Tensor& dresidual, const LayerNormGrads& grads);

}  // namespace ssm
