// Root mean square norms (Zhang & Sennrich 2019, eq. 4), in f32:
//
//   rms_norm        y = x / sqrt(mean(x^2) + eps) * weight
//   add_rms_norm    residual <- residual + x;  y = rms_norm(residual)
//   gated_rms_norm  y = rms_norm(x * silu(z)), the mean over each of `groups` equal parts of a row
//                   (Mamba-2; a checkpoint with n_groups > 1 needs them, whatever Transformers' eager path
//                   does)
//
//   x, z     [T, M] f32 (on a card also bf16 or f16), rows contiguous (a row stride is allowed)
//   residual [T, M] f32, likewise; updated in place
//   weight   [M]    f32, or undefined for none
//   y        [T, M] `result`, or x's type
//
// A row's result does not depend on the batch or the threads, bit for bit.
#pragma once

#include <optional>

#include "ssm/core/tensor.h"

namespace ssm {

Tensor rms_norm(const Tensor& x, const Tensor& weight, float eps, std::optional<DType> result = {});
Tensor add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, float eps,
                    std::optional<DType> result = {});
Tensor gated_rms_norm(const Tensor& x, const Tensor& z, const Tensor& weight, int64_t groups, float eps);

}  // namespace ssm
