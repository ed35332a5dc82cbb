#include "ssm/models/registry.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "ssm/models/gpt_neox.h"
#include "ssm/models/hybrid.h"
#include "ssm/models/mamba1.h"
#include "ssm/models/mamba2.h"

namespace ssm {
namespace {

// Every layer has the same mixer, and that alone.
template <std::unique_ptr<Mixer> (*make)(const nlohmann::json& config, DType compute)>
Blueprint layers_of(const nlohmann::json& config, DType compute) {
  return {.norm_eps = config.at("layer_norm_epsilon"),
          .mixer = [config, compute](int64_t) { return make(config, compute); }};
}

struct Family {
  std::string_view model_type;
  Blueprint (*blueprint)(const nlohmann::json& config, DType compute);
};

constexpr std::array kFamilies{
    Family{"mamba", layers_of<make_mamba1>},
    Family{"falcon_mamba", layers_of<make_mamba1>},
    Family{"mamba2", layers_of<make_mamba2>},
    Family{"mamba_hybrid", mamba_hybrid},
    Family{"gpt_neox", gpt_neox},
};

}  // namespace

std::unique_ptr<CausalLm> make_causal_lm(const nlohmann::json& config, Precision precision) {
  const std::string type = config.at("model_type");
  std::string known;
  for (const Family& family : kFamilies) {
    if (family.model_type == type)
      return std::make_unique<CausalLm>(config, precision, family.blueprint(config, precision.compute));
    known += fmt::format("{}{}", known.empty() ? "" : ", ", family.model_type);
  }
  fail("model_type \"{}\" is not one of {}", type, known);
}

}  // namespace ssm
