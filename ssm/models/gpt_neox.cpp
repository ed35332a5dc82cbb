#include "ssm/models/gpt_neox.h"

#include "ssm/models/attention.h"

namespace ssm {

Blueprint gpt_neox(const nlohmann::json& config, DType compute) {
  const int64_t M = config.at("hidden_size"), F = config.at("intermediate_size");
  return {.names = {.embeddings = "gpt_neox.embed_in",
                    .layers = "gpt_neox.layers",
                    .norm_f = "gpt_neox.final_layer_norm",
                    .head = "embed_out",
                    .norm = "input_layernorm",
                    .mixer = "attention",
                    .mlp_norm = "post_attention_layernorm"},
          .layer_norm = true,
          .norm_eps = config.at("layer_norm_eps"),
          .mixer = [config, compute](int64_t) { return make_neox_attention(config, compute); },
          .mlp = nn::Mlp{.up = {.in = M, .out = F, .has_bias = true, .compute = compute},
                         .down = {.in = F, .out = M, .has_bias = true, .compute = compute},
                         .up_name = "dense_h_to_4h",
                         .down_name = "dense_4h_to_h"},
          .parallel = config.at("use_parallel_residual")};
}

}  // namespace ssm
