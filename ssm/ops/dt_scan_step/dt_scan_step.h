// dt_scan_step: Mamba-1's dt_proj and selective scan for one token each of many sequences, fused: a kernel
// that fetches its states while the product ahead is computed. In each row, with the state of its sequence's
// slot:
//
//   dt, B, C   = parts [R], [16], [16] of dt_B_C                  each divided by its root mean square where
//                                                                 dt_B_C_eps > 0 (FalconMamba)
//   y          = selective_scan(u, dt dt_proj^T, A, B, C, D, z, dt_bias)     (selective_scan.h)
//
//   u, z      [T, E]        bf16 or f16, rows contiguous; T sequences of one token
//   dt_B_C    [T, R + 32]   of their type, contiguous
//   dt_proj   [E, R]        of their type
//   A         [E, 16]       f32, negative, channels contiguous
//   D, dt_bias [E]          f32
//   ssm_state [S, 16, E]    f32, bf16 or f16; read and updated in place at the batch's slots
//   y         [T, E]        of the type of u
//
// On a card, for what has_dt_scan_step() says; everywhere else linear, rms_norm and selective_scan are the
// way. dt and its product are not rounded in between.
#pragma once

#include "ssm/core/tensor.h"
#include "ssm/ops/sequence_batch.h"
#include "ssm/quant/weight.h"

namespace ssm {

struct DtScanStepArgs {
  Tensor u, z, dt_B_C;
  Weight dt_proj;
  Tensor dt_bias, A, D;
  float dt_B_C_eps = 0;
};

bool has_dt_scan_step(const DtScanStepArgs& args, const SequenceBatch& batch, const Tensor& ssm_state);
Tensor dt_scan_step(const DtScanStepArgs& args, const SequenceBatch& batch, const Tensor& ssm_state);

}  // namespace ssm
