// linear: y = x W^T + bias.
//
//   x     [T, K]  f32 (on a card also bf16 or f16), rows contiguous (a row stride is allowed)
//   weight[N, K]  f32, bf16 or f16; read as it lies in the file. On a card of x's type. Or packed
//   bias  [N]     f32, or undefined
//   y     [T, N]  accumulated in f32; `result`, or x's type
//
// `compute` is the type of the activations at the product: x is rounded to it, weights stay as stored. In f32
// each row is summed in one order whatever T and the thread count (docs/numerics.md); bf16 with bf16 weights
// uses the CPU's bf16 dot product where it has one. On a card x's own type is that type, and `compute` must
// be it. There a row's result does not depend on the others, bit for bit, up to 8 rows and where rows of x
// and of the weight are multiples of 16 bytes; where cuBLASLt computes it (more rows, on Hopper more than 128
// or a large matrix), the bias is rounded to a 16-bit result's type.
//
// A packed weight's codes are multiplied on a CPU by x rounded to 16-bit integers, with a step of max |x| /
// 32767 for each 32 elements along K, whatever `compute` says beyond that; products with codes are exact. A
// row's result does not depend on the other rows, their number or the threads, bit for bit; a row with a
// number that is not finite gives NaN. On a card codes are multiplied by x as it is, exactly too, and weights
// are not rounded; only beyond cuda::kMostPackedRows rows they are, to x's type. Up to 8 rows a row's result
// does not depend on the others, bit for bit.
//
// Errors: a shape or dtype that does not fit, by name.
#pragma once

#include <optional>
#include <utility>

#include "ssm/core/tensor.h"
#include "ssm/quant/weight.h"

namespace ssm {

Tensor linear(const Tensor& x, const Weight& weight, const Tensor& bias = {}, DType compute = DType::f32,
              std::optional<DType> result = {}, const Tensor& rounded_bias = {});

// residual [T, N] f32, rows contiguous, += x W^T + bias, where there is a way to do it at once: on a card, up
// to 8 rows of a packed weight, any of a dense one. What is added is not rounded to x's type before.
bool has_linear_add(int64_t T, const Weight& weight);
void linear_add(const Tensor& x, const Weight& weight, const Tensor& bias, const Tensor& residual);

// The products of two branches that stand side by side (GPT-NeoX's parallel residual), where one kernel does
// both: on Hopper, up to 64 rows, dense 16-bit weights that the card's blocks hold at once.
//
//   linear_beside    {linear(first), gelu(linear(second))} of x's type; what gelu reads is not rounded
//   linear_add_both  residual [T, N] f32, rows contiguous, += linear(first) + linear(second), unrounded
struct LinearOperands {
  Tensor x;  // [T, K], as in linear
  Weight weight;
  Tensor bias;  // [N] or undefined
};
bool has_linear_beside(const LinearOperands& first, const LinearOperands& second);
std::pair<Tensor, Tensor> linear_beside(const LinearOperands& first, const LinearOperands& second);
bool has_linear_add_both(const LinearOperands& first, const LinearOperands& second);
void linear_add_both(const LinearOperands& first, const LinearOperands& second, const Tensor& residual);

// An RMS norm (rms_norm.h) between two products without a kernel of its own, on Hopper, for more than 16
// rows of dense bf16 weights, or more than 8 where these are large: the product that adds to the residual
// leaves its rows times the norm's weight, and the one that reads the norm divides what it sums up.
//
//   rms_norm(residual) = x / sqrt(the sum of a row of squares / M + eps)
//
//   linear_add_norm  residual [T, M] f32, rows contiguous, += linear(p), unrounded; weight [M] f32
//   linear_of_norm   linear of that norm, in the type of x; bias [N] or undefined
struct UndividedNorm {
  Tensor x;        // [T, M] residual * weight, of the activations' type
  Tensor squares;  // [T, n] f32: of parts of a row of the residual; n a multiple of 4
  float eps = 0;
};
bool has_linear_of_norm(int64_t T, const Weight& weight);  // for the first product too
UndividedNorm linear_add_norm(const LinearOperands& p, const Tensor& residual, const Tensor& norm_weight,
                              float eps);
Tensor linear_of_norm(const UndividedNorm& x, const Weight& weight, const Tensor& bias);

// The bias in `compute`, which linear would otherwise round in each call: on a card, in 16 bits. Undefined
// where nothing is saved.
Tensor round_bias(const Tensor& bias, DType compute);

// The gradients of linear (y = x W^T + b), where dy is the loss's gradient of y:
//
//   dx = dy W      dW += dy^T x      db += the sum of dy over its rows
//
//   dy      [T, N]  of the type of activations, rows contiguous (a row stride is allowed)
//   x       [T, K]  of dy's type, likewise; only for dweight
//   weight  [N, K]  as in linear; only for dx (and never written: a frozen 16-bit matrix has a dx too, and a
//                   packed one that of its dequantized rows; it has no dweight)
//   dx      [T, K]  of dy's type, likewise with a row stride; overwritten, or added to where dx_adds
//   dweight [N, K], dbias [N]  f32, added to
//
// What is undefined is not computed. Sums are f32, rounded to dx's type (on a card the product is rounded
// before it is added to a 16-bit dx); on a CPU in one order whatever the thread count, and a row of dx does
// not depend on the other rows.
struct LinearGrads {
  Tensor dx{};
  bool dx_adds = false;
  Tensor dweight{}, dbias{};
};
void linear_backward(const Tensor& x, const Weight& weight, const Tensor& dy, const LinearGrads& grads);

// Whether this device multiplies activations of `dtype` natively, so that `--dtype auto` picks it.
bool multiplies_natively(DType dtype, Device device = kCpu);
// The type of activations between ops when products are computed in `compute`: f32 on a CPU, that type on a
// card.
DType activation_dtype(DType compute, Device device);

}  // namespace ssm
