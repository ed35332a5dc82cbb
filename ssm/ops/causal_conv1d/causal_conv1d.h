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

}  // namespace ssm
