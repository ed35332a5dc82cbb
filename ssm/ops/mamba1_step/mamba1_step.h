// mamba1_step: what a Mamba-1 layer computes between its in-projection and its out-projection, for one token
// each of a few sequences, fused. With u, z the halves of a row of xz and S the state's slot of the row:
//
//   u'           = silu(causal_conv1d(u))                       window of `conv_state`, moved on by u
//   dt, B, C     = parts [R], [N], [N] of u' x_proj^T           each divided by its root mean square where
//                                                               norm_eps > 0 (FalconMamba)
//   delta        = softplus(dt dt_proj^T + dt_bias)             [E]
//   h[e, n]      = exp(delta[e] A[e, n]) h[e, n] + delta[e] B[n] u'[e]
//   y[e]         = (sum_n C[n] h[e, n] + D[e] u'[e]) * silu(z[e])
//
//   xz           [T, 2E]        f32, bf16 or f16, rows contiguous; T sequences of one token
//   conv_weight  [E, 4]         f32, conv_bias [E] f32 or undefined
//   x_proj       [R + 2N, E]    of xz's type; dt_proj [E, R] likewise
//   dt_bias, D   [E]            f32
//   A            [E, N]         f32, negative
//   conv_state   [S, 3, E]      f32; read and updated in place at the batch's slots
//   ssm_state    [S, N, E]      f32, bf16 or f16; the same
//   y            [T, E]         of xz's type
//
// On a card of compute capability 9.0 on, for what has_mamba1_step() says; everywhere else the ops that it
// fuses are the way. dt, B, C and the products' input u' are rounded to xz's type, as between those ops.
#pragma once

#include "ssm/core/tensor.h"
#include "ssm/ops/sequence_batch.h"

namespace ssm {

struct Mamba1StepArgs {
  Tensor xz;           // [T, 2E]
  Tensor conv_weight;  // [E, 4]
  Tensor conv_bias;    // [E] or undefined
  Tensor x_proj;       // [R + 2N, E]
  Tensor dt_proj;      // [E, R]
  Tensor dt_bias;      // [E]
  Tensor A;            // [E, N]
  Tensor D;            // [E]
  float norm_eps = 0;  // of the weightless norms of dt, B and C; 0: none
};

// Whether these operands (xz excepted, which need not be there yet) have a fused step of T rows on `device`.
bool has_mamba1_step(const Mamba1StepArgs& args, const SequenceBatch& batch, Device device);

Tensor mamba1_step(const Mamba1StepArgs& args, const SequenceBatch& batch, const Tensor& conv_state,
                   const Tensor& ssm_state);

}  // namespace ssm
