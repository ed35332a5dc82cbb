// mamba2_step: a Mamba-2 layer for one token each of a few sequences, fused. With z, xBC, dt the parts [E],
// [E + 2GN], [H] of rms_norm(residual) in_proj^T + in_bias, g the group of head h and, in each row, the
// states of its sequence's slot:
//
//   x, B, C      = silu(causal_conv1d(xBC))                          window of `conv_state`, moved on by xBC
//   dt'[h]       = clamp(softplus(dt[h] + dt_bias[h]), dt_min, dt_max)
//   s[h, n, p]   = exp(dt'[h] A[h]) s[h, n, p] + dt'[h] B[g, n] x[h, p]
//   y[h, p]      = sum_n C[g, n] s[h, n, p] + D[h] x[h, p]
//   residual    <- residual + gated_rms_norm(y, z) out_proj^T + out_bias         the norm in `groups` parts
//
//   residual     [T, M]             f32, rows contiguous; T sequences of one token; updated in place
//   norm_weight  [M]                f32
//   in_proj      [2E + 2GN + H, M]  of `compute`, f32, bf16 or f16, or packed, as out_proj [M, E]
//   in_bias      [2E + 2GN + H]     f32 or undefined, as out_bias [M]
//   conv_weight  [E + 2GN, 4]       f32, conv_bias [E + 2GN] f32 or undefined
//   A, dt_bias   [H]                f32
//   D            [H] or [E]         f32
//   gate_weight  [E]                f32, of the gated norm
//   conv_state   [S, 3, E + 2GN]    f32; read and updated in place at the batch's slots
//   ssm_state    [S, H, N, P]       f32, bf16 or f16; the same
//
// On a card, for what has_mamba2_step() says; everywhere else the ops that it fuses are the way. What one of
// those ops would hand to the next is rounded to `compute` here too, what is added to the residual excepted.
#pragma once

#include <limits>

#include "ssm/core/tensor.h"
#include "ssm/ops/sequence_batch.h"
#include "ssm/quant/weight.h"

namespace ssm {

struct Mamba2StepArgs {
  DType compute = DType::f32;
  Tensor norm_weight;  // [M]
  float norm_eps = 1e-5f;
  Weight in_proj;      // [2E + 2GN + H, M]
  Tensor in_bias;      // [2E + 2GN + H] or undefined
  Tensor conv_weight;  // [E + 2GN, 4]
  Tensor conv_bias;    // [E + 2GN] or undefined
  Tensor A, dt_bias;   // [H]
  Tensor D;            // [H] or [E]
  Tensor gate_weight;  // [E]
  float gate_eps = 1e-5f;
  Weight out_proj;  // [M, E]
  Tensor out_bias;  // [M] or undefined
  int64_t groups = 1;
  float dt_min = 0.0f;
  float dt_max = std::numeric_limits<float>::infinity();
};

// Whether there is a fused step for these operands.
bool has_mamba2_step(const Mamba2StepArgs& args, const SequenceBatch& batch, const Tensor& ssm_state);

void mamba2_step(const Mamba2StepArgs& args, const SequenceBatch& batch, const Tensor& conv_state,
                 const Tensor& ssm_state, const Tensor& residual);

}  // namespace ssm
