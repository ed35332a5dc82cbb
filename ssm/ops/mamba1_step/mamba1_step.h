// mamba1_step: a Mamba-1 layer for one token each of a few sequences, fused. With u, z the halves of
// rms_norm(residual) in_proj^T + in_bias and, in each row, the states of its sequence's slot:
//
//   u'           = silu(causal_conv1d(u))                       window of `conv_state`, moved on by u
//   dt, B, C     = parts [R], [N], [N] of u' x_proj^T           each divided by its root mean square where
//                                                               dt_B_C_eps > 0 (FalconMamba)
//   delta        = softplus(dt dt_proj^T + dt_bias)             [E]
//   h[e, n]      = exp(delta[e] A[e, n]) h[e, n] + delta[e] B[n] u'[e]
//   y[e]         = (sum_n C[n] h[e, n] + D[e] u'[e]) * silu(z[e])
//   residual    <- residual + y out_proj^T + out_bias
//
//   residual     [T, M]         f32, rows contiguous; T sequences of one token; updated in place
//   norm_weight  [M]            f32
//   in_proj      [2E, M]        of `compute`, f32, bf16 or f16, or packed, as x_proj [R + 2N, E], dt_proj [E,
//   R]
//                               and out_proj [M, E]
//   in_bias      [2E]           f32 or undefined, as out_bias [M]
//   conv_weight  [E, 4]         f32, conv_bias [E] f32 or undefined
//   dt_bias, D   [E]            f32
//   A            [E, N]         f32, negative
//   conv_state   [S, 3, E]      f32; read and updated in place at the batch's slots
//   ssm_state    [S, N, E]      f32, bf16 or f16; the same
//
// On a card, for what has_mamba1_step() says; everywhere else the ops that it fuses are the way. What one of
// those ops would hand to the next is rounded to `compute` here too, delta, the normed dt, B and C and what
// is added to the residual excepted.
#pragma once

#include "ssm/core/tensor.h"
#include "ssm/ops/sequence_batch.h"
#include "ssm/quant/weight.h"

namespace ssm {

struct Mamba1StepArgs {
  DType compute = DType::f32;
  Tensor norm_weight;  // [M]
  float norm_eps = 0;
  Weight in_proj;        // [2E, M]
  Tensor in_bias;        // [2E] or undefined
  Tensor conv_weight;    // [E, 4]
  Tensor conv_bias;      // [E] or undefined
  Weight x_proj;         // [R + 2N, E]
  Weight dt_proj;        // [E, R]
  Tensor dt_bias;        // [E]
  Tensor A;              // [E, N]
  Tensor D;              // [E]
  Weight out_proj;       // [M, E]
  Tensor out_bias;       // [M] or undefined
  float dt_B_C_eps = 0;  // of the weightless norms of dt, B and C; 0: none
};

// Whether there is a fused step for these operands.
bool has_mamba1_step(const Mamba1StepArgs& args, const SequenceBatch& batch);

void mamba1_step(const Mamba1StepArgs& args, const SequenceBatch& batch, const Tensor& conv_state,
                 const Tensor& ssm_state, const Tensor& residual);

}  // namespace ssm
