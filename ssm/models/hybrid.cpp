#include "ssm/models/hybrid.h"

#include <algorithm>

#include "ssm/models/attention.h"
#include "ssm/models/mamba1.h"
#include "ssm/models/mamba2.h"

namespace ssm {

Blueprint mamba_hybrid(const nlohmann::json& config, DType compute) {
  const std::vector<int64_t> attending = config.at("attn_layer_idx");
  const bool is_mamba2 = config.at("ssm_layer") == "Mamba2";
  Blueprint blueprint{.norm_eps = config.at("layer_norm_epsilon"),
                      .mixer = [config, compute, attending, is_mamba2](int64_t layer) {
                        if (std::find(attending.begin(), attending.end(), layer) != attending.end())
                          return make_hybrid_attention(config, compute);
                        return is_mamba2 ? make_mamba2(config, compute) : make_mamba1(config, compute);
                      }};
  const int64_t M = config.at("hidden_size"), F = config.at("d_intermediate");
  if (F > 0) {
    blueprint.mlp = nn::Mlp{.up = {.in = M, .out = 2 * F, .compute = compute},
                            .down = {.in = F, .out = M, .compute = compute},
                            .gated = true,
                            .up_name = "fc1",
                            .down_name = "fc2"};
  }
  return blueprint;
}

}  // namespace ssm
