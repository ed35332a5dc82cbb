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
//   state    [S, N, E]  h of each slot; read and updated in place: f32, bf16 or f16.
//                       Undefined: from zeros, nothing is kept
//   y           [T, E]  of u's type
//
// Any N >= 1 (on a card up to 256). On a CPU a row's result does not depend on the batch, the threads or how
// a sequence is split over calls, bit for bit. On a card long sequences are cut into chunks whose length is a
// function of the batch's shapes: the same call gives the same bits, and batches and splits agree within f32
// rounding (2e-5 relative, and the rounding of y where it is 16 bits).
#pragma once

#include <functional>

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

// `delta_again` makes delta a second time, the same bits: where a tape records, it is then not kept for the
// gradient, which is a seventh of a layer's activations.
Tensor selective_scan(const SelectiveScanArgs& args, const SequenceBatch& batch, const Tensor& state,
                      std::function<Tensor()> delta_again = {});

// The gradients of a functional whose gradient with respect to y is dy [T, E] (of y's type, rows contiguous).
// With s[t] the argument of y's gate, dy'[t] = dy[t] silu(z[t]), and dh the gradient of the states, which
// runs backwards in time (back-propagation through the recurrence; Gu & Dao 2023, section 3.3.2, recomputes h
// so):
//
//   dh[t, e, n]  = C[t, n] dy'[t, e] + exp(delta'[t+1, e] A[e, n]) dh[t+1, e, n]
//   dC[t, n]     = sum_e dy'[t, e] h[t, e, n]
//   dB[t, n]     = sum_e dh[t, e, n] delta'[t, e] u[t, e]
//   dA[e, n]    += sum_t dh[t, e, n] exp(delta' A) h[t-1, e, n] delta'[t, e]
//   du[t, e]     = D[e] dy'[t, e] + delta'[t, e] sum_n dh[t, e, n] B[t, n]
//   g[t, e]      = sum_n dh[t, e, n] (A exp(delta' A) h[t-1, e, n] + B[t, n] u[t, e])
//   ddelta[t, e] = softplus'(delta[t, e] + delta_bias[e]) g[t, e]
//   ddelta_bias += sum_t ddelta[t, e]
//   dD[e]       += sum_t dy'[t, e] u[t, e]
//   dz[t, e]     = dy[t, e] s[t, e] silu'(z[t, e])
//
// du, ddelta, dz [T, E] and dB, dC [T, N] are overwritten (u's type, row strides allowed); dA [E, N] (any
// strides), dD and ddelta_bias [E] are f32 and added to. An undefined one is not wanted. None overlaps an
// operand or another.
//
// `initial` [B, N, E] f32 is the state before each sequence of the batch, in the batch's order (undefined:
// zeros); nothing flows into it, nor out of the last state.
//
// States are computed again. On a CPU one of 64 channels is kept every 2048 tokens, and sums over E are made
// of at most 32 partial [T, N]; the gradients are the same bits whatever the threads, those of activations
// also whatever the batch. On a card one state is kept every 8 tokens ([T / 8, E, 16] f32, 8 bytes a token
// and channel), and there are E / 64 partial sums [T, 32]; the same call gives the same bits,
// docs/numerics.md has the bounds.
struct SelectiveScanGrads {
  Tensor du, ddelta;   // [T, E]
  Tensor dA;           // [E, N]
  Tensor dB, dC;       // [T, N]
  Tensor dD;           // [E]
  Tensor dz;           // [T, E]
  Tensor ddelta_bias;  // [E]
};

void selective_scan_backward(const SelectiveScanArgs& args, const SequenceBatch& batch, const Tensor& initial,
                             const Tensor& dy, const SelectiveScanGrads& grads);

}  // namespace ssm
