// embedding: y[t] = weight[ids[t]].
//
//   ids   [T]     i32, each in [0, V)
//   weight[V, M]  f32, bf16 or f16
//   y     [T, M]  f32
//
// Errors: an id outside the vocabulary, by value and position; on a card such an id gives a row of NaN, since
// the host does not see it.
#pragma once

#include "ssm/core/tensor.h"
#include "ssm/quant/weight.h"

namespace ssm {

Tensor embedding(const Tensor& ids, const Weight& weight);

}  // namespace ssm
