// Visitors over a model's parameters: fill them from a WeightSource, count them.
#pragma once

#include "ssm/io/weight_source.h"
#include "ssm/models/causal_lm.h"

namespace ssm {

// Sets every parameter of `model` from `source` and prepares it. Throws Error naming a tensor that is missing
// or of another shape or dtype.
void fill_parameters(CausalLm& model, const io::WeightSource& source);

struct ParameterCount {
  int64_t parameters = 0;
  size_t bytes = 0;  // resident, and so what one decode step reads
};

ParameterCount count_parameters(CausalLm& model);

}  // namespace ssm
