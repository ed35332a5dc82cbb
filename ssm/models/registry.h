// The families by their model_type. To add one: a file with its mixer, and a line here.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>

#include "ssm/models/causal_lm.h"

namespace ssm {

// `config` is a full one in Transformers' key names. Parameters are undefined until a visitor sets them.
// Throws Error for an unknown model_type, naming the known ones.
std::unique_ptr<CausalLm> make_causal_lm(const nlohmann::json& config, Precision precision);

}  // namespace ssm
