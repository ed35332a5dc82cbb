// Lora: a low-rank change of a matrix (Hu et al. 2021), beside it and not multiplied out:
//
//   y = x W^T + scale dropout(x) A^T B^T
//
// Names, shapes and the scale are PEFT's.
#pragma once

#include <optional>

#include "ssm/core/tensor.h"
#include "ssm/quant/weight.h"

namespace ssm::nn {

struct Lora {
  int64_t rank = 0;
  float scale = 1;
  float dropout = 0;   // the probability, in training only
  bool drops = false;  // whether it does now
  uint64_t seed = 0;   // of the mask: another one each step and module
  Weight A = {};       // of a Linear [rank, in]
  Weight B = {};       // [out, rank]
  // Of an Embedding: f32, A [rank, rows] with a stride of 1 over the ranks, so that a token's are one row of
  // its transpose.
  Tensor embedding_A = {}, embedding_B = {};  // B [width, rank]

  // y + what it adds, of a Linear's input x.
  Tensor added_to(const Tensor& y, const Tensor& x, DType compute) const;
  Tensor inner(const Tensor& x, DType compute) const;  // dropout(x) A^T: [T, rank]
  Tensor added_to_rows(const Tensor& y, const Tensor& ids) const;
  // The matrix itself: scale B A, [out, in]; of an Embedding scale (B A)^T, [rows, width]. f32.
  Tensor product() const;
};

// A module that may have a Lora, as a visitor meets it, before its parameters.
struct LoraTarget {
  std::optional<Lora>& lora;
  int64_t in, out;
  bool embedding;
};

}  // namespace ssm::nn
