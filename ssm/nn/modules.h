// The layers that models are made of: data (weights and sizes) and one call. A module never sees a file or a
// device.
#pragma once

#include <memory>
#include <optional>
#include <utility>

#include "ssm/nn/column_moments.h"
#include "ssm/nn/lora.h"
#include "ssm/nn/visitor.h"
#include "ssm/ops/causal_conv1d/causal_conv1d.h"
#include "ssm/ops/sequence_batch.h"

namespace ssm::nn {

struct Linear {
  int64_t in = 0, out = 0;
  bool has_bias = false;
  DType compute = DType::f32;        // type of the activations at the product
  std::optional<DType> result = {};  // of the output; nothing: the input's
  bool owns_weight = true;           // false: it is another module's, who names it
  Weight weight = {};                // [out, in]
  Tensor bias = {};                  // [out]
  Tensor rounded_bias = {};          // round_bias(bias, compute)
  std::optional<Lora> lora = {};
  std::shared_ptr<ColumnMoments> moments = {};  // where set, of every x

  Tensor operator()(const Tensor& x) const;    // [T, in] -> [T, out]
  Tensor without_bias(const Tensor& x) const;  // the same, for who adds the bias later
  bool is_plain() const;                       // weight and bias, and nobody who looks on
  // residual [T, out] f32 += (*this)(x), unrounded, where adds(T): on a card.
  bool adds(int64_t T) const;
  void add_to(const Tensor& residual, const Tensor& x) const;
  void visit(Visitor& v);
  void prepare();  // sets what is derived from its parameters
};

struct Embedding {
  int64_t rows = 0, width = 0;
  Weight weight = {};  // [rows, width]
  std::optional<Lora> lora = {};

  Tensor operator()(const Tensor& ids) const;  // [T] -> [T, width]
  void visit(Visitor& v);
};

struct RmsNorm {
  int64_t width = 0;
  float eps = 1e-5f;
  Tensor weight = {};  // [width]

  void visit(Visitor& v);
};

struct LayerNorm {
  int64_t width = 0;
  float eps = 1e-5f;
  Tensor weight = {};  // [width]
  Tensor bias = {};    // [width]

  void visit(Visitor& v);
};

// Depthwise.
struct Conv1d {
  int64_t channels = 0, width = 0;
  bool has_bias = true;
  Activation activation = Activation::silu;
  Tensor weight = {};  // [channels, 1, width]
  Tensor bias = {};    // [channels]

  Tensor operator()(const Tensor& x, const SequenceBatch& batch, const Tensor& state) const;  // [T, channels]
  void visit(Visitor& v);
};

// down(gelu(up(x))), or gated: down(a silu(b)), a and b the halves of up(x).
struct Mlp {
  Linear up = {}, down = {};
  bool gated = false;
  std::string_view up_name = {}, down_name = {};

  Tensor operator()(const Tensor& x) const { return down(hidden(x)); }  // [T, width] -> [T, width]
  Tensor hidden(const Tensor& x) const;                                 // what down reads
  void visit(Visitor& v);
};

// What branches side by side of one layer do with their matrices, in one kernel where there is one:
// {l(x), mlp.hidden(v)}, and residual += a(x) + b(v), of modules that add.
std::pair<Tensor, Tensor> beside(const Linear& l, const Tensor& x, const Mlp& mlp, const Tensor& v);
void add_both(const Tensor& residual, const Linear& a, const Tensor& x, const Linear& b, const Tensor& v);

}  // namespace ssm::nn
