#include <gtest/gtest.h>

#include "ssm/io/checkpoint_writer.h"
#include "ssm/io/config.h"
#include "ssm/io/original_writer.h"
#include "ssm/io/test_files.h"

namespace ssm::io {
namespace {

using nlohmann::json;

json read(const json& config) { return read_config(config.dump(), "config.json"); }

json with(json base, const json& changes) {
  base.merge_patch(changes);
  return base;
}

void refused(const json& config, const std::vector<std::string>& parts) {
  std::vector<std::string> all{"config.json"};
  all.insert(all.end(), parts.begin(), parts.end());
  expect_error([&] { read(config); }, all);
}

const json kNeox{{"model_type", "gpt_neox"}, {"hidden_size", 64}, {"num_attention_heads", 4}};
const json kAttn{{"causal", true}, {"num_heads", 2}, {"head_dim", 32}, {"rotary_emb_dim", 16}};
const json kHybrid{{"d_model", 64},
                   {"n_layer", 4},
                   {"ssm_cfg", {{"layer", "Mamba2"}, {"headdim", 32}}},
                   {"attn_layer_idx", {1, 3}},
                   {"attn_cfg", kAttn}};

TEST(ConfigAttention, GptNeoxDefaults) {
  const json expected{{"model_type", "gpt_neox"},
                      {"vocab_size", 50432},
                      {"hidden_size", 6144},
                      {"num_hidden_layers", 44},
                      {"num_attention_heads", 64},
                      {"intermediate_size", 24576},
                      {"hidden_act", "gelu"},
                      {"layer_norm_eps", 1e-5},
                      {"rotary_pct", 0.25},
                      {"rotary_emb_base", 10000.0},
                      {"use_parallel_residual", true},
                      {"attention_bias", true},
                      {"max_position_embeddings", 2048},
                      {"tie_word_embeddings", false},
                      {"bos_token_id", 0},
                      {"eos_token_id", 2},
                      {"pad_token_id", nullptr}};
  EXPECT_EQ(read({{"model_type", "gpt_neox"}}), expected);
  EXPECT_EQ(read({{"architectures", {"GPTNeoXForCausalLM"}}}), expected);
}

TEST(ConfigAttention, GptNeoxPositionsUnderEitherName) {
  const json old = read(with(kNeox, {{"rotary_pct", 1.0}, {"rotary_emb_base", 500}}));
  EXPECT_EQ(old["rotary_pct"], 1.0);
  EXPECT_EQ(old["rotary_emb_base"], 500.0);
  const json parameters{{"rope_type", "default"}, {"rope_theta", 500}, {"partial_rotary_factor", 1.0}};
  EXPECT_EQ(read(with(kNeox, {{"rope_parameters", parameters}})), old);
  EXPECT_EQ(read(with(kNeox, {{"rope_parameters", {{"rope_theta", 500}}}}))["rotary_pct"], 0.25);
}

TEST(ConfigAttention, GptNeoxIsWrittenAsItWasRead) {
  const json config = read(with(kNeox, {{"rotary_pct", 0.5}, {"use_parallel_residual", false}}));
  const std::string text = transformers_config(config, DType::f16, "config.json");
  EXPECT_EQ(read_config(text, "config.json"), config);
  EXPECT_EQ(json::parse(text)["architectures"], json({"GPTNeoXForCausalLM"}));
  expect_error([&] { original_config(config, "config.json"); }, {"config.json", "GPT-NeoX"});
}

TEST(ConfigAttention, GptNeoxRefusals) {
  refused(with(kNeox, {{"hidden_act", "gelu_new"}}), {"hidden_act", "gelu_new"});
  refused(with(kNeox, {{"num_attention_heads", 5}}), {"num_attention_heads", "5", "64"});
  refused(with(kNeox, {{"rotary_pct", 0.2}}), {"rotary_pct", "3 of the 16"});
  refused(with(kNeox, {{"rotary_pct", 1.5}}), {"rotary_pct", "1.5"});
  refused(with(kNeox, {{"rotary_pct", 1e300}}), {"rotary_pct"});
  refused(with(kNeox, {{"rope_scaling", {{"type", "linear"}, {"factor", 2}}}}), {"rope_scaling", "linear"});
  refused(with(kNeox, {{"rope_parameters", {{"rope_type", "yarn"}}}}), {"rope_parameters", "yarn"});
  refused(with(kNeox, {{"rope_parameters", {{"rope_theta", 0}}}}), {"rope_parameters.rope_theta", "0"});
  refused(with(kNeox, {{"layer_norm_eps", -1}}), {"layer_norm_eps"});
  refused(with(kNeox, {{"use_parallel_residual", 1}}), {"use_parallel_residual"});
}

TEST(ConfigAttention, HybridsOfEitherMamba) {
  const json c = read(kHybrid);
  EXPECT_EQ(c["model_type"], "mamba_hybrid");
  EXPECT_EQ(c["ssm_layer"], "Mamba2");
  EXPECT_EQ(c["num_heads"], 4);
  EXPECT_EQ(c["attn_layer_idx"], json({1, 3}));
  EXPECT_EQ(c["d_intermediate"], 0);
  EXPECT_EQ(c["attn_cfg"], json({{"causal", true},
                                 {"d_conv", 0},
                                 {"head_dim", 32},
                                 {"num_heads", 2},
                                 {"num_heads_kv", 2},
                                 {"out_proj_bias", true},
                                 {"qkv_proj_bias", true},
                                 {"rotary_emb_dim", 16},
                                 {"rotary_emb_base", 10000.0}}));
  const json mlp = read({{"d_model", 64}, {"n_layer", 2}, {"d_intermediate", 130}});
  EXPECT_EQ(mlp["model_type"], "mamba_hybrid");
  EXPECT_EQ(mlp["ssm_layer"], "Mamba1");
  EXPECT_EQ(mlp["d_intermediate"], 256);
  EXPECT_EQ(mlp["attn_cfg"], json::object());
  EXPECT_EQ(read({{"d_model", 64}, {"n_layer", 2}, {"attn_cfg", kAttn}})["model_type"], "mamba");
}

TEST(ConfigAttention, HybridsAreWrittenAsTheyWereRead) {
  for (const json& config : {read(kHybrid), read(with(kHybrid, {{"ssm_cfg", {{"D_has_hdim", true}}}})),
                             read({{"d_model", 64}, {"n_layer", 2}, {"d_intermediate", 130}})}) {
    EXPECT_EQ(read_config(transformers_config(config, DType::f32, "c"), "c"), config);
    json again = read_config(original_config(config, "c"), "c");
    EXPECT_EQ(again, config);
  }
}

TEST(ConfigAttention, HybridRefusals) {
  const auto attn = [](const json& changes, const std::vector<std::string>& parts) {
    refused(with(kHybrid, {{"attn_cfg", changes}}), parts);
  };
  refused(with(kHybrid, {{"attn_layer_idx", {1, 4}}}), {"attn_layer_idx", "4 layers"});
  refused(with(kHybrid, {{"attn_layer_idx", {1, 1}}}), {"attn_layer_idx"});
  refused(with(kHybrid, {{"attn_layer_idx", {-1}}}), {"attn_layer_idx"});
  refused(with(kHybrid, {{"attn_layer_idx", 3}}), {"attn_layer_idx", "3"});
  refused(with(kHybrid, {{"d_intermediate", -1}}), {"d_intermediate", "-1"});
  refused(with(kHybrid, {{"attn_cfg", json::array({1})}}), {"attn_cfg", "not an object"});
  attn({{"causal", false}}, {"attn_cfg.causal"});
  attn({{"causal", nullptr}}, {"attn_cfg.causal"});
  attn({{"num_heads", nullptr}}, {"attn_cfg.num_heads", "is missing"});
  attn({{"num_heads", 0}}, {"attn_cfg.num_heads", "0"});
  attn({{"num_heads_kv", 3}}, {"attn_cfg.num_heads_kv", "3"});
  attn({{"head_dim", nullptr}, {"num_heads", 3}}, {"attn_cfg.num_heads", "3", "64"});
  attn({{"rotary_emb_dim", 15}}, {"attn_cfg.rotary_emb_dim", "15"});
  attn({{"rotary_emb_dim", 34}}, {"attn_cfg.rotary_emb_dim", "34"});
  attn({{"rotary_emb_interleaved", true}}, {"attn_cfg.rotary_emb_interleaved"});
  attn({{"mlp_dim", 256}}, {"attn_cfg.mlp_dim", "256"});
  attn({{"softmax_scale", 0.5}}, {"attn_cfg.softmax_scale", "0.5"});
  attn({{"novelty", 1}}, {"attn_cfg.novelty", "not a known setting of MHA"});
  attn({{"head_dim", 2000000000}}, {"attn_cfg.head_dim"});
}

}  // namespace
}  // namespace ssm::io
