// A model of a published shape with random weights: for benchmarks, where only sizes matter.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ssm/load/load_model.h"

namespace ssm {

std::vector<std::string> named_shapes();  // mamba-130m .. mamba-2.8b, mamba2-130m .. mamba2-2.7b, ...

// The full config of a named shape ("mamba-130m", also with an owner: "state-spaces/mamba-130m"), or nothing.
std::optional<nlohmann::json> named_shape(std::string_view name);

// Matrices are stored as `stored`, or packed as options.quantization says; values are small and finite, the
// same for the same config.
LoadedModel random_model(const nlohmann::json& config, DType stored, const LoadOptions& options = {});

}  // namespace ssm
