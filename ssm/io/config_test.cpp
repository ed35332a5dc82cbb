#include "ssm/io/config.h"

#include <cmath>

#include "ssm/io/json.h"
#include "ssm/io/test_files.h"

namespace ssm::io {
namespace {

using nlohmann::json;

json read(const std::string& text) { return read_config(text, "config.json"); }

// The given fields on top of a valid file.
json with(json base, const json& changes) {
  base.merge_patch(changes);
  return base;
}
const json kMamba2{{"model_type", "mamba2"}, {"hidden_size", 64}, {"num_heads", 8}, {"head_dim", 16}};
const json kOriginal{{"d_model", 64}, {"n_layer", 2}};
const json kMistral{
    {"dim", 64}, {"n_layers", 2}, {"vocab_size", 100}, {"n_groups", 2}, {"tie_embeddings", false}};

void refused(const json& base, const json& changes, const std::vector<std::string>& parts) {
  std::vector<std::string> all{"config.json"};
  all.insert(all.end(), parts.begin(), parts.end());
  expect_error([&] { read(with(base, changes).dump()); }, all);
}

TEST(Config, TransformersDefaults) {
  const json mamba = read(R"({"model_type":"mamba"})");
  const json expected{{"model_type", "mamba"},     {"vocab_size", 50280},  {"hidden_size", 768},
                      {"num_hidden_layers", 32},   {"state_size", 16},     {"expand", 2},
                      {"intermediate_size", 1536}, {"conv_kernel", 4},     {"use_bias", false},
                      {"use_conv_bias", true},     {"hidden_act", "silu"}, {"layer_norm_epsilon", 1e-5},
                      {"residual_in_fp32", true},  {"rms_norm", true},     {"tie_word_embeddings", true},
                      {"bos_token_id", 0},         {"eos_token_id", 0},    {"pad_token_id", 0},
                      {"time_step_rank", 48}};
  EXPECT_EQ(mamba, expected);
  json falcon = expected;
  falcon["model_type"] = "falcon_mamba";
  falcon["mixer_rms_eps"] = 1e-6;
  EXPECT_EQ(read(R"({"model_type":"falcon_mamba"})"), falcon);
  const json mamba2 = read(R"({"model_type":"mamba2"})");
  const json expected2{{"model_type", "mamba2"},
                       {"vocab_size", 32768},
                       {"hidden_size", 4096},
                       {"num_hidden_layers", 64},
                       {"state_size", 128},
                       {"expand", 2},
                       {"intermediate_size", 8192},
                       {"conv_kernel", 4},
                       {"use_bias", false},
                       {"use_conv_bias", true},
                       {"hidden_act", "silu"},
                       {"layer_norm_epsilon", 1e-5},
                       {"residual_in_fp32", true},
                       {"rms_norm", true},
                       {"tie_word_embeddings", false},
                       {"bos_token_id", 0},
                       {"eos_token_id", 2},
                       {"pad_token_id", 1},
                       {"num_heads", 128},
                       {"head_dim", 64},
                       {"n_groups", 8},
                       {"chunk_size", 256},
                       {"time_step_limit", {0.0, INFINITY}},
                       {"norm_before_gate", false},
                       {"D_has_hdim", false}};
  EXPECT_EQ(mamba2, expected2);
}

TEST(Config, Falcon7bTakesItsInnerSizeFromIntermediateSize) {
  const json c = read(R"({"model_type":"falcon_mamba","hidden_size":4096,"intermediate_size":8192,"expand":16,
    "num_hidden_layers":64,"state_size":16,"time_step_rank":256,"vocab_size":65024,"bos_token_id":0,
    "eos_token_id":11,"pad_token_id":11,"tie_word_embeddings":false})");
  EXPECT_EQ(c["intermediate_size"], 8192);
  EXPECT_EQ(c["time_step_rank"], 256);
  EXPECT_EQ(c["mixer_rms_eps"], 1e-6);
  EXPECT_EQ(c["eos_token_id"], 11);
}

TEST(Config, Mamba2IgnoresWhatTransformersIgnores) {
  const json c =
      read(with(kMamba2, {{"intermediate_size", 7}, {"rms_norm", false}, {"norm_before_gate", true}}).dump());
  EXPECT_EQ(c["intermediate_size"], 128);
  EXPECT_EQ(c["rms_norm"], true);
  EXPECT_EQ(c["norm_before_gate"], false);
}

TEST(Config, InfinityInEverySpelling) {
  for (const char* high : {"Infinity", R"({"__float__":"Infinity"})"}) {
    const json c = read(std::string(R"({"model_type":"mamba2","time_step_limit":[0.0, )") + high + "]}");
    EXPECT_EQ(c["time_step_limit"], json({0.0, INFINITY}));
  }
  const json c =
      read(R"({"model_type":"mamba2","time_step_limit":[-Infinity,0.5],"note":"Infinity \" NaN","x":NaN})");
  EXPECT_EQ(c["time_step_limit"], json({-INFINITY, 0.5}));
  const std::string text = R"({"hidden_act":"\\\"Infinity"})";
  EXPECT_EQ(parse_json(text, "x", SpecialFloats::allow)["hidden_act"], "\\\"Infinity");
  EXPECT_TRUE(std::isnan(parse_json("[NaN]", "x", SpecialFloats::allow)[0].get<double>()));
  expect_error([] { parse_json("[NaN]", "x.json"); }, {"x.json", "not valid JSON"});
  expect_error([] { read(R"({"model_type":"mamba2","time_step_limit":[0,InfinityNaN]})"); }, {"config.json"});
  expect_error([] { read(R"({"model_type":"mamba2","layer_norm_epsilon":Infinity})"); },
               {"layer_norm_epsilon"});
  expect_error([] { read(R"({"model_type":"mamba2","layer_norm_epsilon":NaN})"); }, {"layer_norm_epsilon"});
}

TEST(Config, FamilyByArchitectureOrModelType) {
  EXPECT_EQ(read(R"({"architectures":["FalconMambaForCausalLM"]})")["model_type"], "falcon_mamba");
  EXPECT_EQ(read(R"({"architectures":["Mamba2ForCausalLM"],"model_type":null})")["model_type"], "mamba2");
  EXPECT_EQ(read(R"({"model_type":"mamba2","architectures":null})")["model_type"], "mamba2");
  // Converted by state-spaces: Transformers' fields beside the original's.
  EXPECT_EQ(
      read(R"({"model_type":"mamba","hidden_size":32,"d_model":32,"n_layer":2,"ssm_cfg":{}})")["hidden_size"],
      32);
  expect_error([] { read(R"({"model_type":"llama"})"); },
               {"config.json", "model_type", "llama", "mamba, mamba2, falcon_mamba, gpt_neox"});
  expect_error([] { read(R"({"architectures":["LlamaForCausalLM"]})"); },
               {"config.json", "architectures", "Llama"});
  expect_error([] { read(R"({"architectures":[]})"); }, {"config.json", "architectures"});
  expect_error([] { read(R"({"x":1})"); }, {"config.json", "model_type", "d_model", "dim"});
  expect_error([] { read("[]"); }, {"config.json"});
}

TEST(Config, OriginalMamba1) {
  const json c = read(with(kOriginal, {{"vocab_size", 50277},
                                       {"ssm_cfg", {{"d_state", 8}, {"dt_rank", "auto"}, {"dt_min", 0.1}}}})
                          .dump());
  EXPECT_EQ(c["model_type"], "mamba");
  EXPECT_EQ(c["vocab_size"], 50280);
  EXPECT_EQ(c["intermediate_size"], 128);
  EXPECT_EQ(c["time_step_rank"], 4);
  EXPECT_EQ(c["state_size"], 8);
  EXPECT_EQ(c["tie_word_embeddings"], true);
  EXPECT_EQ(read(with(kOriginal, {{"ssm_cfg", {{"dt_rank", 7}, {"expand", 3}}}}).dump())["time_step_rank"],
            7);
  EXPECT_EQ(read(R"({"d_model":2560,"n_layer":64,"ssm_cfg":null})")["time_step_rank"], 160);
}

TEST(Config, OriginalMamba2) {
  const json c = read(with(kOriginal, {{"pad_vocab_size_multiple", 16},
                                       {"ssm_cfg",
                                        {{"layer", "Mamba2"},
                                         {"headdim", 32},
                                         {"ngroups", 2},
                                         {"D_has_hdim", true},
                                         {"d_ssm", 128},
                                         {"chunk_size", 64},
                                         {"bias", true}}}})
                          .dump());
  EXPECT_EQ(c["model_type"], "mamba2");
  EXPECT_EQ(c["vocab_size"], 50288);
  EXPECT_EQ(c["state_size"], 128);
  EXPECT_EQ(c["num_heads"], 4);
  EXPECT_EQ(c["n_groups"], 2);
  EXPECT_EQ(c["chunk_size"], 64);
  EXPECT_EQ(c["D_has_hdim"], true);
  EXPECT_EQ(c["use_bias"], true);
  EXPECT_EQ(c["time_step_limit"], json({0.0, INFINITY}));
  EXPECT_EQ(read(R"({"d_model":64,"n_layer":2,"ssm_cfg":{"layer":"Mamba2","dt_limit":[0.0,Infinity]}})")
                ["num_heads"],
            2);
}

TEST(Config, Mistral) {
  const json c = read(R"({"dim":4096,"n_layers":64,"vocab_size":32768,"n_groups":8,"rms_norm":true,
    "residual_in_fp32":true,"fused_add_norm":true,"pad_vocab_size_multiple":1,"tie_embeddings":false,
    "model_type":"mamba","norm_before_gate":true})");
  json codestral = read(R"({"model_type":"mamba2"})");
  codestral["bos_token_id"] = 1;
  codestral["pad_token_id"] = nullptr;
  EXPECT_EQ(c, codestral);
  refused(kMistral, {{"model_type", "llama"}}, {"model_type", "llama"});
  refused(kMistral, {{"n_groups", 3}}, {"n_groups", "3"});
  refused(kMistral, {{"dim", 65}}, {"dim", "65"});
  refused(kMistral, {{"rms_norm", false}}, {"rms_norm"});
  for (const char* key : {"n_layers", "vocab_size", "n_groups", "tie_embeddings"}) {
    refused(kMistral, {{key, nullptr}}, {key, "is missing"});
  }
}

TEST(ConfigRefuses, OriginalSettingsThatChangeTheFunction) {
  refused(kOriginal, {{"rms_norm", false}}, {"rms_norm", "LayerNorm"});
  const auto ssm = [](const json& cfg, const std::vector<std::string>& parts) {
    refused(kOriginal, {{"ssm_cfg", cfg}}, parts);
  };
  ssm({{"layer", "Mamba3"}}, {"ssm_cfg.layer", "Mamba3"});
  ssm({{"layer", "Mamba2"}, {"d_ssm", 64}}, {"ssm_cfg.d_ssm", "64"});
  ssm({{"layer", "Mamba2"}, {"rmsnorm", false}}, {"ssm_cfg.rmsnorm"});
  ssm({{"layer", "Mamba2"}, {"norm_before_gate", true}}, {"ssm_cfg.norm_before_gate"});
  ssm({{"layer", "Mamba2"}, {"headdim", 48}}, {"ssm_cfg.headdim", "48"});
  ssm({{"layer", "Mamba2"}, {"ngroups", 3}}, {"ssm_cfg.ngroups", "3"});
  ssm({{"layer", "Mamba2"}, {"dt_limit", {0.5, 0.1}}}, {"ssm_cfg.dt_limit"});
  ssm({{"layer", "Mamba2"}, {"novelty", 1}}, {"ssm_cfg.novelty", "not a known setting of Mamba2"});
  ssm({{"headdim", 64}}, {"ssm_cfg.headdim", "not a known setting of Mamba1"});
  ssm(json::array({1}), {"ssm_cfg", "not an object"});
  refused(kOriginal, {{"n_layer", nullptr}}, {"n_layer", "is missing"});
}

TEST(ConfigRefuses, NumbersThatMakeNoSense) {
  for (const char* key : {"vocab_size", "hidden_size", "num_hidden_layers", "state_size", "conv_kernel",
                          "num_heads", "head_dim", "n_groups", "chunk_size"}) {
    for (const json& bad : {json(0), json(-1), json(1.5), json("8"), json(true), json(4e9), json(2147483648u),
                            json(UINT64_MAX), json::array()}) {
      refused(kMamba2, {{key, bad}}, {key});
    }
    expect_error([&] { read(R"({"model_type":"mamba2",")" + std::string(key) + R"(":null})"); },
                 {key, "null"});
  }
  refused(kMamba2, {{"expand", 0}}, {"expand"});
  refused(kMamba2, {{"expand", 1e300}}, {"expand"});
  refused(kMamba2, {{"num_heads", 9}}, {"num_heads", "9", "128"});
  refused(kMamba2, {{"n_groups", 3}}, {"n_groups", "3"});
  refused(kMamba2, {{"layer_norm_epsilon", -1e-5}}, {"layer_norm_epsilon"});
  refused(kMamba2, {{"layer_norm_epsilon", "1e-5"}}, {"layer_norm_epsilon"});
  refused(kMamba2, {{"time_step_limit", {1.0}}}, {"time_step_limit"});
  refused(kMamba2, {{"time_step_limit", {"a", "b"}}}, {"time_step_limit"});
  refused(kMamba2, {{"use_bias", 1}}, {"use_bias"});
  refused(kMamba2, {{"tie_word_embeddings", "yes"}}, {"tie_word_embeddings"});
  refused(kMamba2, {{"hidden_act", "gelu"}}, {"hidden_act", "gelu"});
  refused(kMamba2, {{"eos_token_id", -5}}, {"eos_token_id"});
  refused(kMamba2, {{"eos_token_id", {1, "x"}}}, {"eos_token_id"});
  refused(kMamba2, {{"bos_token_id", {1}}}, {"bos_token_id"});
  refused(kMamba2, {{"quantization_config", {{"quant_method", "gptq"}}}}, {"quantization_config"});
  refused({{"model_type", "mamba"}}, {{"time_step_rank", "big"}}, {"time_step_rank", "big"});
  refused({{"model_type", "mamba"}}, {{"intermediate_size", 0}}, {"intermediate_size"});
  refused({{"model_type", "falcon_mamba"}}, {{"mixer_rms_eps", 0}}, {"mixer_rms_eps"});
}

TEST(Config, TokenIds) {
  const json c = read(with(kMamba2, {{"eos_token_id", {1, 2}}, {"pad_token_id", -1}}).dump());
  EXPECT_EQ(c["eos_token_id"], json({1, 2}));
  EXPECT_TRUE(c["pad_token_id"].is_null());
  EXPECT_TRUE(read(R"({"model_type":"mamba","bos_token_id":null})")["bos_token_id"].is_null());
}

TEST(Json, RefusesWhatIsNotOnePlainValue) {
  const auto expect = [](const std::string& text, const std::vector<std::string>& parts) {
    expect_error([&] { parse_json(text, "x.json"); }, parts);
  };
  expect("", {"x.json", "not valid JSON"});
  expect("{} {}", {"x.json", "not valid JSON"});
  expect(R"({"a":1,"b":{"a":1,"a":2}})", {"x.json", "\"a\" appears twice"});
  expect(std::string(100'000, '['), {"x.json", "deeper"});
  expect("[1e999]", {"x.json", "not valid JSON"});
  expect("\"\xff\"", {"x.json", "not valid JSON"});
  expect(std::string((16 << 20) + 1, ' '), {"x.json", "at most"});
  EXPECT_EQ(parse_json(R"([{"a":[1,-2,0.5,null,true,"x"]},[]])", "x").dump(),
            R"([{"a":[1,-2,0.5,null,true,"x"]},[]])");
}

TEST(Json, PacksListsOfIds) {
  const auto read = [](const std::string& text) { return parse_json_packing_ids(text, "x.json"); };
  const json value = read(R"({"a": [ 1,   2 ,2147483647], "b": [[0], [7, 8]], "c": "\"[1]"})");
  EXPECT_EQ(unpacked_ids(value["a"]), (std::vector<int32_t>{1, 2, 2147483647}));
  EXPECT_EQ(unpacked_ids(value["b"][0]), std::vector<int32_t>{0});
  EXPECT_EQ(unpacked_ids(value["b"][1]), (std::vector<int32_t>{7, 8}));
  EXPECT_EQ(value["c"], "\"[1]");
  for (const char* text : {"[]", "[1,-2]", "[1,0.5]", "[1e3]", "[1,[]]", R"([1,"x"])", "[2147483648]",
                           "[null]", R"({"a":3e+000000000000000000001})", "[3e+000000000000000000001,[1]]"}) {
    EXPECT_EQ(read(text), parse_json(text, "x")) << text;
  }
  for (const char* text : {"[1", "[1,", "[1,]", "[01]", "1[1]", "[1]1", "[1][1]", "{[1]:1}", "[-0x]",
                           R"({"a":[1]"b":2})", R"({"a":[1],"a":[2]})"}) {
    std::string plain;
    try {
      parse_json(text, "x.json");
    } catch (const Error& e) {
      plain = e.what();
    }
    expect_error([&] { read(text); }, {plain});
  }
  damage(R"({"prompt":[1,2,3],"input":[[4],[5,6]],"user":"[7]"})",
         [&](const std::string& text) { read(text); });
}

TEST(Config, SurvivesDamage) {
  for (const json& base : {kMamba2, kOriginal, kMistral}) {
    damage(base.dump(), [](const std::string& text) { read(text); });
  }
  damage(R"({"model_type":"mamba2","time_step_limit":[0.0, Infinity],"eos_token_id":[1,2]})",
         [](const std::string& text) { read(text); });
}

}  // namespace
}  // namespace ssm::io
