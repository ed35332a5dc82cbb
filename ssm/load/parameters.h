// Visitors over a model's parameters: fill them from a WeightSource, count them.
#pragma once

#include "ssm/core/progress.h"
#include "ssm/io/weight_source.h"
#include "ssm/load/quantization.h"
#include "ssm/models/causal_lm.h"

namespace ssm {

// Where parameters live. On a CPU matrices stay as they are stored, views of the mapped file where they can;
// on a card dense ones are of `compute`'s type, since it multiplies operands of one type only, and packed
// ones lie as quant/card_layout.h says.
struct Placement {
  Device device = kCpu;
  DType compute = DType::f32;
};

// The source's tensor of that name, f32, bf16 or f16. Throws Error naming it where it is missing or of
// another shape or type.
Tensor need_tensor(const io::WeightSource& source, const std::string& name, const Shape& shape);

Tensor place_weight(const Tensor& weight, const Placement& placement);
Weight place_weight(const Weight& weight, const Placement& placement);

// Sets every parameter of `model` from `source` and prepares it; packed matrices stay packed, and with
// `quantization` dense ones are packed too. Throws Error naming a tensor that is missing or of another shape
// or dtype, or that was packed before it was to be.
void fill_parameters(CausalLm& model, const io::WeightSource& source, const Placement& placement = {},
                     const Quantization* quantization = nullptr, const OnProgress& progress = {});

// D and the weights of norms, before any training.
bool begins_as_one(std::string_view name);

struct ParameterCount {
  int64_t parameters = 0;
  size_t bytes = 0;  // resident, and so what one decode step reads
};

ParameterCount count_parameters(CausalLm& model);

}  // namespace ssm
