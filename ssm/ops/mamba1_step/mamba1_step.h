// mamba1_step: a Mamba-1 layer's mixer up to its out-projection, for one token each of a few sequences,
// fused. With u, z the halves of x in_proj^T + in_bias and, in each row, the states of its sequence's slot:
//
//   u'           = silu(causal_conv1d(u))                       window of `conv_state`, moved on by u
//   dt, B, C     = parts [R], [N], [N] of u' x_proj^T           each divided by its root mean square where
//                                                               norm_eps > 0 (FalconMamba)
//   delta        = softplus(dt dt_proj^T + dt_bias)             [E]
//   h[e, n]      = exp(delta[e] A[e, n]) h[e, n] + delta[e] B[n] u'[e]
//   y[e]         = (sum_n C[n] h[e, n] + D[e] u'[e]) * silu(z[e])
//
//   x            [T, M]         f32, bf16 or f16, rows contiguous; T sequences of one token
//   in_proj      [2E, M]        of x's type, as x_proj [R + 2N, E] and dt_proj [E, R]
//   in_bias      [2E]           f32 or undefined
//   conv_weight  [E, 4]         f32, conv_bias [E] f32 or undefined
//   dt_bias, D   [E]            f32
//   A            [E, N]         f32, negative
//   conv_state   [S, 3, E]      f32; read and updated in place at the batch's slots
//   ssm_state    [S, N, E]      f32, bf16 or f16; the same
//   y            [T, E]         of x's type
//
// On a card, for what has_mamba1_step() says; everywhere else the ops that it fuses are the way. What one of
// those ops would hand to the next is rounded to x's type here too, delta and the normed dt, B and C
// excepted.
#pragma once

#include "ssm/core/tensor.h"
#include "ssm/ops/sequence_batch.h"

namespace ssm {

struct Mamba1StepArgs {
  Tensor x;            // [T, M]
  Tensor in_proj;      // [2E, M]
  Tensor in_bias;      // [2E] or undefined
  Tensor conv_weight;  // [E, 4]
  Tensor conv_bias;    // [E] or undefined
  Tensor x_proj;       // [R + 2N, E]
  Tensor dt_proj;      // [E, R]
  Tensor dt_bias;      // [E]
  Tensor A;            // [E, N]
  Tensor D;            // [E]
  float norm_eps = 0;  // of the weightless norms of dt, B and C; 0: none
};

// Whether there is a fused step for these operands.
bool has_mamba1_step(const Mamba1StepArgs& args, const SequenceBatch& batch);

Tensor mamba1_step(const Mamba1StepArgs& args, const SequenceBatch& batch, const Tensor& conv_state,
                   const Tensor& ssm_state);

}  // namespace ssm
