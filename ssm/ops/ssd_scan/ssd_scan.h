// ssd_scan: the recurrence of Mamba-2 (Dao & Gu 2024, section 6 and listing 1), computed in chunks as matrix
// products. With dt'[t, h] = clamp(softplus(dt[t, h] + dt_bias[h]), dt_min, dt_max) and g the group of head
// h:
//
//   h[t, h, n, p] = exp(dt'[t, h] A[h]) h[t-1, h, n, p] + dt'[t, h] B[t, g, n] x[t, h, p]
//   y[t, h, p]    = sum_n C[t, g, n] h[t, h, n, p] + D[h] x[t, h, p]
//
//   x       [T, H*P]  f32 (on a card also bf16 or f16), rows contiguous (a row stride is allowed)
//   dt      [T, H]    of x's type, rows contiguous (a row stride is allowed)
//   A       [H]       f32, negative
//   B, C    [T, G*N]  of x's type, rows contiguous (a row stride is allowed); H is a multiple of G
//   D       [H] or [H*P] f32, or undefined
//   dt_bias [H]       f32, or undefined
//   state [S, H, N, P] h of each slot; read and updated in place: f32, bf16 or f16. Undefined: from
//                     zeros, nothing is kept
//   y       [T, H*P]  of x's type
//
// On a CPU chunks of kSsdChunk tokens are counted from the first token of the call: splits of a sequence on
// multiples of it give the same bits, other splits and single steps agree to 1e-5 relative. A sequence's
// result does not depend on its neighbours in the batch or on the threads, bit for bit. A narrow state is
// rounded where a sequence's part of a call ends, at least; it stands outside the equal bits.
//
// On a card sequences are cut so that the batch fills it, and splits and batches agree within a bound. In f32
// it is 2e-5 relative. In bf16 and f16 a step is exact but for the rounding of y (and of a 16-bit state);
// longer calls multiply 16-bit factors on the tensor cores (the scores with their decays, dt' x with its
// decay, and the state before every 64th token) and sum in f32: docs/numerics.md has the bound. In f16 those
// factors must stay below 65504, as y must.
#pragma once

#include <limits>

#include "ssm/core/tensor.h"
#include "ssm/ops/sequence_batch.h"

namespace ssm {

inline constexpr int64_t kSsdChunk = 64;  // tokens, on a CPU

struct SsdScanArgs {
  Tensor x;        // [T, H*P]
  Tensor dt;       // [T, H]
  Tensor A;        // [H]
  Tensor B, C;     // [T, G*N]
  Tensor D;        // [H], [H*P] or undefined
  Tensor dt_bias;  // [H] or undefined
  int64_t groups = 1;
  bool dt_softplus = true;
  float dt_min = 0.0f;
  float dt_max = std::numeric_limits<float>::infinity();
};

Tensor ssd_scan(const SsdScanArgs& args, const SequenceBatch& batch, const Tensor& state);

// The gradients for dy [T, H*P] (of x's type, rows contiguous): the reverse-time recurrence of the one above
// (chain rule; Dao & Gu 2024, section 6, differentiate the same matrix form). Heads are left out below, n and
// p summed over by the dots:
//
//   dh[t]  = C[t] dy[t]^T + exp(dt'[t+1] A) dh[t+1]                                              [N, P]
//   dx[t]  = dt'[t] B[t] dh[t] + D dy[t],  dD += sum_t dy[t] x[t] (summed over p where D is [H])
//   dC[t]  = h[t] dy[t],  dB[t] = dt'[t] dh[t] x[t]                   summed over the heads of the group
//   r[t]   = exp(dt'[t] A) <dh[t], h[t-1]>,  dA += sum_t dt'[t] r[t]
//   ddt[t] = slope (A r[t] + B[t] dh[t] . x[t]),  ddt_bias += sum_t ddt[t]
//
// slope is that of softplus, and zero where dt' is clamped. dx, ddt, dB, dC are overwritten (x's type, row
// strides allowed), dA, dD and ddt_bias (laid out as the operands, f32) added to. An undefined one is not
// wanted. None overlaps an operand or another. `initial` [B, H, N, P] f32 is the state before each sequence
// of the batch, in its order (undefined: zeros); nothing flows into it, nor out of the last state.
//
// States are computed again. On a CPU those before every 1024th token are kept; the bits do not depend on the
// threads, nor those of the activations' gradients on the batch. On a card h and dh of every 64th token are
// kept in x's type (in f16 both must stay below 65504); the same call gives the same bits, docs/numerics.md
// has the bounds.
struct SsdScanGrads {
  Tensor dx;        // [T, H*P]
  Tensor ddt;       // [T, H]
  Tensor dA;        // [H]
  Tensor dB, dC;    // [T, G*N]
  Tensor dD;        // as D
  Tensor ddt_bias;  // [H]
};

void ssd_scan_backward(const SsdScanArgs& args, const SequenceBatch& batch, const Tensor& initial,
                       const Tensor& dy, const SsdScanGrads& grads);

}  // namespace ssm
