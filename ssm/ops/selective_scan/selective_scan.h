// selective_scan: the recurrence of Mamba-1 (Gu & Dao 2023, section 3 and algorithm 2), with its softplus,
// skip and gate. With delta'[t, e] = softplus(delta[t, e] + delta_bias[e]):
//
//   h[t, e, n] = exp(delta'[t, e] A[e, n]) h[t-1, e, n] + delta'[t, e] B[t, n] u[t, e]
//   y[t, e]    = (sum_n C[t, n] h[t, e, n] + D[e] u[t, e]) * silu(z[t, e])
//
//   u, delta, z [T, E]  f32 (on a card also bf16 or f16, all of one type), rows contiguous (a row stride is
//                       allowed); z undefined: no gate
//   A           [E, N]  f32, negative; fastest when its stride over E is 1
//   B, C        [T, N]  of u's type, rows contiguous (a row stride is allowed)
//   D, delta_bias [E]   f32, or undefined
//   state    [S, N, E]  h of each slot; read and updated in place: f32, on a card also bf16 or f16.
//                       Undefined: from zeros, nothing is kept
//   y           [T, E]  of u's type
//
// Any N >= 1 (on a card up to 256). On a CPU a row's result does not depend on the batch, the threads or how
// a sequence is split over calls, bit for bit. On a card long sequences are cut into chunks whose length is a
// function of the batch's shapes: the same call gives the same bits, and batches and splits agree within f32
// rounding (2e-5 relative, and the rounding of y where it is 16 bits).
#pragma once

#include "ssm/core/tensor.h"
#include "ssm/ops/sequence_batch.h"

namespace ssm {

struct SelectiveScanArgs {
  Tensor u, delta;    // [T, E]
  Tensor A;           // [E, N]
  Tensor B, C;        // [T, N]
  Tensor D;           // [E] or undefined
  Tensor z;           // [T, E] or undefined
  Tensor delta_bias;  // [E] or undefined
  bool delta_softplus = true;
};

Tensor selective_scan(const SelectiveScanArgs& args, const SequenceBatch& batch, const Tensor& state);

}  // namespace ssm
