// The hybrids of mamba_ssm (Dao & Gu 2024, section 9.2.3): Mamba layers, attention in those of
// attn_layer_idx, and in each layer a gated MLP where d_intermediate is not 0.
#pragma once

#include "ssm/models/causal_lm.h"

namespace ssm {

Blueprint mamba_hybrid(const nlohmann::json& config, DType compute);

}  // namespace ssm
