// What an MLP does between its matrices, in f32:
//
//   gelu        y = x Phi(x), Phi the normal distribution's (Hendrycks & Gimpel 2016), not its
//               approximation by tanh
//   gated_silu  y = x silu(z), silu(z) = z / (1 + e^-z) (Shazeer 2020, "SwiGLU")
//
//   x, z [T, M] f32 (on a card also bf16 or f16), rows contiguous (a row stride is allowed)
//   y    [T, M] of their type
//
// A row's result does not depend on the batch or the threads, bit for bit. Errors: a shape that does not fit,
// by name.
#pragma once

#include "ssm/core/tensor.h"

namespace ssm {

Tensor gelu(const Tensor& x);
Tensor gated_silu(const Tensor& x, const Tensor& z);

// Their gradients for dy [T, M], overwritten, all of the type of x; with phi the normal density and s = 1 /
// (1 + e^-z):
//
//   gelu        dx = dy (Phi(x) + x phi(x))
//   gated_silu  dx = dy silu(z)      dz = dy x s (1 + z (1 - s));  an undefined one is not computed
void gelu_backward(const Tensor& x, const Tensor& dy, const Tensor& dx);
void gated_silu_backward(const Tensor& x, const Tensor& z, const Tensor& dy, const Tensor& dx,
                         const Tensor& dz);

}  // namespace ssm
