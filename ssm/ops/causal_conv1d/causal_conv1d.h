// causal_conv1d: a depthwise convolution along time that sees the past only (Mamba, section 3.4).
//
//   y[t, c] = act(bias[c] + sum_k weight[c, k] x[t - (K - 1) + k, c])
//
//   x      [T, C]        f32 (on a card also bf16 or f16), rows contiguous (a row stride is allowed)
//   weight [C, K]        f32, any K >= 1; fastest when its stride over C is 1
//   bias   [C]           f32, or undefined
//   state  [S, K - 1, C] f32, the last K - 1 inputs of each slot, newest last; read and updated in place.
//                        Undefined: every sequence starts from zeros and nothing is kept.
//   y      [T, C]        of x's type
//
// A row's result does not depend on the batch, the threads or how a sequence is split over calls, bit for
// bit.
#pragma once

#include "ssm/core/tensor.h"
#include "ssm/ops/sequence_batch.h"

namespace ssm {

enum class Activation { none, silu };

Tensor causal_conv1d(const Tensor& x, const Tensor& weight, const Tensor& bias, Activation activation,
                     const SequenceBatch& batch, const Tensor& state);

// The gradients for dy [T, C] (of x's type, rows contiguous), of the formula above by the chain rule. With s
// the argument of act, computed again, and ds[t, c] = dy[t, c] act'(s[t, c]), zero past the end of a
// sequence:
//
//   dx[t, c]       = sum_k weight[c, k] ds[t + (K - 1) - k, c]
//   dweight[c, k] += sum_t ds[t, c] x[t - (K - 1) + k, c]
//   dbias[c]      += sum_t ds[t, c]
//
// dx [T, C] is overwritten (x's type, a row stride is allowed); dweight [C, K] (any strides) and dbias [C]
// are f32 and added to. An undefined one is not wanted. None overlaps an operand or another. `initial` [B, K
// - 1, C] f32 holds the inputs before each sequence of the batch, in its order (undefined: zeros); nothing
// flows into it. On a CPU the bits do not depend on the threads, nor those of dx on the batch.
struct CausalConv1dGrads {
  Tensor dx;       // [T, C]
  Tensor dweight;  // [C, K]
  Tensor dbias;    // [C]
};

void causal_conv1d_backward(const Tensor& x, const Tensor& weight, const Tensor& bias, Activation activation,
                            const SequenceBatch& batch, const Tensor& initial, const Tensor& dy,
                            const CausalConv1dGrads& grads);

}  // namespace ssm
