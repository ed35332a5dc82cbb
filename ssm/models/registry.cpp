#include "ssm/models/registry.h"

#include <array>
#include <string_view>

#include "ssm/models/mamba1.h"
#include "ssm/models/mamba2.h"

namespace ssm {
namespace {

struct Family {
  std::string_view model_type;
  CausalLm::MakeMixer make_mixer;
};

constexpr std::array kFamilies{
    Family{"mamba", make_mamba1},
    Family{"falcon_mamba", make_mamba1},
    Family{"mamba2", make_mamba2},
};

}  // namespace

std::unique_ptr<CausalLm> make_causal_lm(const nlohmann::json& config, Precision precision) {
  const std::string type = config.at("model_type");
  std::string known;
  for (const Family& family : kFamilies) {
    if (family.model_type == type) return std::make_unique<CausalLm>(config, precision, family.make_mixer);
    known += fmt::format("{}{}", known.empty() ? "" : ", ", family.model_type);
  }
  fail("model_type \"{}\" is not one of {}", type, known);
}

}  // namespace ssm
