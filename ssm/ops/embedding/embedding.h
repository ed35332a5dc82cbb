// embedding: y[t] = weight[ids[t]].
//
//   ids   [T]     i32, each in [0, V)
//   weight[V, M]  f32, bf16 or f16, or packed (dequantize_row's values to the bit)
//   y     [T, M]  f32
//
// Errors: an id outside the vocabulary, by value and position; on a card such an id gives a row of NaN, since
// the host does not see it.
#pragma once

#include "ssm/core/tensor.h"
#include "ssm/quant/weight.h"

namespace ssm {

Tensor embedding(const Tensor& ids, const Weight& weight);

// Its gradient: dweight[ids[t]] += dy[t], in the order of t.
//
//   dy      [T, M]  f32 (on a card also bf16 or f16), rows contiguous (a row stride is allowed)
//   dweight [V, M]  f32, rows contiguous
//
// The same bits whatever the threads, on a card too. Errors as above; on a card a row of dy whose id is
// outside the vocabulary is left out (the forward's NaN has told).
void embedding_backward(const Tensor& ids, const Tensor& dy, const Tensor& dweight);

}  // namespace ssm
