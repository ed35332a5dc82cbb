// Root mean square norms (Zhang & Sennrich 2019, eq. 4), in f32:
//
//   rms_norm        y = x / sqrt(mean(x^2) + eps) * weight
//   add_rms_norm    residual <- residual + x;  y = rms_norm(residual)
//   gated_rms_norm  y = rms_norm(x * silu(z)), the mean over each of `groups` equal parts of a row
//                   (Mamba-2; a checkpoint with n_groups > 1 needs them, whatever Transformers' eager path
//                   does)
//
//   x, z     [T, M] f32 (on a card also bf16 or f16), rows contiguous (a row stride is allowed)
//   residual [T, M] f32, likewise; updated in place, but where a tape records: then it becomes another tensor
//   weight   [M]    f32, or undefined for none
//   y        [T, M] `result`, or x's type
//
// A row's result does not depend on the batch or the threads, bit for bit.
#pragma once

#include <optional>

#include "ssm/core/tensor.h"

namespace ssm {

Tensor rms_norm(const Tensor& x, const Tensor& weight, float eps, std::optional<DType> result = {});
Tensor add_rms_norm(const Tensor& x, Tensor& residual, const Tensor& weight, float eps,
                    std::optional<DType> result = {});
Tensor gated_rms_norm(const Tensor& x, const Tensor& z, const Tensor& weight, int64_t groups, float eps);

// Their gradients. With u what is normed (x; the updated residual; x silu(z)), r = 1 / sqrt(mean(u^2) + eps)
// and g = dy weight:
//
//   du = r g - u r^3 mean(g u)      dweight += the sum of dy u r over the rows
//
//   rms_norm        dx = du
//   add_rms_norm    dresidual <- dresidual + du, and dx the same: `residual` is the updated one; dresidual
//                   comes with its gradient from above and leaves as that of the residual before and of x
//   gated_rms_norm  dx = du silu(z);  dz = du x silu'(z), silu' = s (1 + z (1 - s)), s = sigmoid(z)
//
//   dy             [T, M] f32 (on a card of y's type), rows contiguous (a row stride is allowed)
//   dx, dz         [T, M] of the type of x, likewise, overwritten; in add_rms_norm f32, or on a card 16 bits
//   dresidual      [T, M] f32, likewise
//   weight, dweight [M]   f32; dweight is added to
//
// What is undefined is not computed. A row of dx, dz and dresidual does not depend on the batch; dweight is
// summed in an order given by T alone. The error of du is some units of the larger of its two terms, which
// cancel where M is 1 or nearly so.
void rms_norm_backward(const Tensor& x, const Tensor& weight, float eps, const Tensor& dy, const Tensor& dx,
                       const Tensor& dweight);
void add_rms_norm_backward(const Tensor& residual, const Tensor& weight, float eps, const Tensor& dy,
                           const Tensor& dresidual, const Tensor& dx, const Tensor& dweight);
void gated_rms_norm_backward(const Tensor& x, const Tensor& z, const Tensor& weight, int64_t groups,
                             float eps, const Tensor& dy, const Tensor& dx, const Tensor& dz,
                             const Tensor& dweight);

}  // namespace ssm
