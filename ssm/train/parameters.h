// What training changes: f32 values, and beside them what AdamW remembers. The model computes with the values
// themselves, or on a card with 16-bit copies of its matrices (mixed precision: parameters in f32, products
// in bf16, as the authors of Mamba ask for). A_log, D, dt's bias, norms and convolutions are f32 everywhere.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "ssm/models/causal_lm.h"

namespace ssm::train {

struct TrainedParameter {
  std::string name;  // Transformers'
  Tensor value;      // f32, on the device
  Tensor used;       // the model's: `value`, or its rounded copy; carries the gradient
  Tensor m, v;       // AdamW's moments, as `value`
  Tensor average;    // exponential moving average of `value`; undefined: not kept
  bool decays = false;
};

// Whether AdamW's weight decay applies: to matrices, embeddings and convolutions; not to A_log, D, dt_bias,
// norms and biases.
bool decays(std::string_view name);

class ParameterSet {
 public:
  // Takes every parameter of `model` (of which the matrices may lie on the host in any type) to `device`.
  // Those that `trained` names get memory of their own and a gradient; the others stay fixed, in `compute`'s
  // type on a card.
  ParameterSet(CausalLm& model, Device device, DType compute,
               const std::function<bool(std::string_view name)>& trained, bool averages);

  std::vector<TrainedParameter>& all() { return parameters_; }
  const std::vector<TrainedParameter>& all() const { return parameters_; }
  // Or its average; undefined for one that is not trained.
  Tensor value_of(std::string_view name, bool averaged = false) const;
  int64_t count() const;  // elements that are trained
  void clear_gradients();
  // After `value` was set from outside: the model's copies.
  void refresh_copies();

 private:
  std::vector<TrainedParameter> parameters_;
};

}  // namespace ssm::train
