// GPT-NeoX (Black et al. 2022): Pythia. Attention and MLP with biases, LayerNorms, both read the residual at
// once unless use_parallel_residual is false.
#pragma once

#include "ssm/models/causal_lm.h"

namespace ssm {

Blueprint gpt_neox(const nlohmann::json& config, DType compute);

}  // namespace ssm
