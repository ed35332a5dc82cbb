// Models with attention wherever a model goes: no verb has code of its own for them.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "ssm/io/safetensors.h"
#include "tests/command_runner.h"

namespace ssm::test {
namespace {

namespace fs = std::filesystem;

const fs::path kModels = kSource / "tests/goldens/models";
const std::vector<std::string> kNames{"neox-default", "neox-serial", "hybrid-attn", "hybrid-mlp"};

std::vector<int32_t> golden_ids(const std::string& name, const char* tensor) {
  const auto file = io::SafetensorsFile::open(kModels / name / "golden.safetensors");
  const Tensor t = file->find(tensor).value();
  return {t.values<int64_t>().begin(), t.values<int64_t>().end()};
}

std::vector<int32_t> generated(const fs::path& model, const std::vector<int32_t>& prompt, int count,
                               std::vector<std::string> more = {}) {
  std::vector<std::string> arguments{"generate",
                                     model,
                                     "--tokens",
                                     joined(prompt),
                                     "--temperature",
                                     "0",
                                     "--max-new-tokens",
                                     std::to_string(count),
                                     "--ignore-eos",
                                     "--dtype",
                                     "f32",
                                     "--json"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  const CommandResult result = ssm(arguments);
  EXPECT_EQ(result.code, 0) << result.err;
  return result.code == 0 ? result.json()["tokens"].get<std::vector<int32_t>>() : std::vector<int32_t>();
}

TEST(CommandAttention, GeneratesWhatTheGoldensSay) {
  for (const std::string& name : kNames) {
    EXPECT_EQ(generated(kModels / name, golden_ids(name, "tokens"), 24), golden_ids(name, "greedy")) << name;
  }
}

TEST(CommandAttention, GoesOnFromAStateFile) {
  const TempFolder folder;
  for (const std::string& name : kNames) {
    const std::string file = folder / (name + ".state");
    std::vector<int32_t> ids =
        generated(kModels / name, golden_ids(name, "tokens"), 10, {"--save-state", file});
    const CommandResult rest = ssm({"generate", kModels / name, "--load-state", file, "--temperature", "0",
                                    "--max-new-tokens", "14", "--ignore-eos", "--dtype", "f32", "--json"});
    ASSERT_EQ(rest.code, 0) << rest.err;
    const auto more = rest.json()["tokens"].get<std::vector<int32_t>>();
    ids.insert(ids.end(), more.begin(), more.end());
    EXPECT_EQ(ids, golden_ids(name, "greedy")) << name;
  }
}

TEST(CommandAttention, InfoSaysWhatATextTakes) {
  const nlohmann::json neox = ssm({"info", kModels / "neox-default", "--kv-memory", "3", "--json"}).json();
  EXPECT_EQ(neox["family"], "gpt_neox");
  EXPECT_EQ(neox["attention_layers"], 2);
  EXPECT_EQ(neox["kv_bytes_per_token"], 2 * 2 * 16 * 4);
  EXPECT_EQ(neox["kv_memory_bytes"], 3 << 20);
  EXPECT_EQ(neox["state_bytes_per_sequence"], 0);
  const nlohmann::json hybrid = ssm({"info", kModels / "hybrid-attn", "--json"}).json();
  EXPECT_EQ(hybrid["attention_layers"], 1);
  EXPECT_GT(hybrid["state_bytes_per_sequence"], 0);
  EXPECT_FALSE(ssm({"info", kTiny, "--json"}).json().contains("kv_bytes_per_token"));
}

TEST(CommandAttention, ConvertsAndQuantizes) {
  const TempFolder folder;
  for (const std::string& name : kNames) {
    const fs::path source = kModels / name, made = folder / name;
    const bool neox = name.starts_with("neox");
    const CommandResult converted = ssm({"convert", source, made, "--to", neox ? "hf" : "original"});
    ASSERT_EQ(converted.code, 0) << converted.err;
    EXPECT_EQ(generated(made, golden_ids(name, "tokens"), 24), golden_ids(name, "greedy")) << name;
    if (name == "neox-default") {
      for (const bool packed : {false, true}) {
        const std::string file = folder / (packed ? "packed.gguf" : "neox.gguf"), back = folder / "back";
        const CommandResult gguf =
            packed ? ssm({"quantize", source, file, "--type", "q8_0"}) : ssm({"convert", source, file});
        ASSERT_EQ(gguf.code, 0) << gguf.err;
        const std::vector<int32_t> ids = generated(file, golden_ids(name, "tokens"), 24);
        if (!packed) {
          EXPECT_EQ(ids, golden_ids(name, "greedy"));
        }
        ASSERT_EQ(ssm({"convert", file, back}).code, 0);
        EXPECT_EQ(generated(back, golden_ids(name, "tokens"), 24), ids);
        fs::remove_all(back);
      }
    }
    const CommandResult other = ssm({"convert", source, folder / "x", "--to", neox ? "original" : "gguf"});
    EXPECT_EQ(other.code, 1);
    EXPECT_NE(other.err.find(neox ? "GPT-NeoX" : "GGUF"), std::string::npos) << other.err;
    const fs::path packed = folder / (name + "-packed");
    const CommandResult quantized = ssm({"quantize", source, packed, "--type", "int8", "--group", "32"});
    ASSERT_EQ(quantized.code, 0) << quantized.err;
    EXPECT_EQ(generated(packed, golden_ids(name, "tokens"), 3).size(), 3u) << name;
  }
}

TEST(CommandAttention, ATextThatTakesTooMuchIsRefusedInOneLine) {
  const std::vector<int32_t> prompt(9000, 3);
  const std::string model = kModels / "neox-default";
  for (const std::string verb : {"generate", "score"}) {
    std::vector<std::string> arguments{verb, model, "--tokens", joined(prompt), "--kv-memory", "1"};
    const CommandResult result = ssm(arguments);
    EXPECT_EQ(result.code, 1);
    EXPECT_NE(result.err.find("more than the 1 MiB that they may (--kv-memory)"), std::string::npos)
        << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  }
}

TEST(CommandAttention, PublishedShapesRun) {
  const CommandResult result = ssm({"bench", "pythia-14m", "--promptlen", "70", "--genlen", "3", "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  const nlohmann::json report = result.json();
  EXPECT_EQ(report["parameters"], 14067712);
  EXPECT_EQ(report["kv_bytes_per_token"], 6 * 2 * 128 * 4);
}

TEST(CommandAttention, ComparesTwoModels) {
  const TempFolder folder;
  const std::string drawing = folder / "compare.svg";
  const std::vector<std::string> arguments{"bench",
                                           "compare",
                                           kModels / "mamba-default",
                                           kModels / "neox-default",
                                           "--batches",
                                           "2,1",
                                           "--contexts",
                                           "64,100000",
                                           "--genlen",
                                           "3",
                                           "--promptlen",
                                           "5",
                                           "--kv-memory",
                                           "20",
                                           "--svg",
                                           drawing};
  std::vector<std::string> as_json = arguments;
  as_json.push_back("--json");
  const CommandResult result = ssm(as_json);
  ASSERT_EQ(result.code, 0) << result.err;
  const nlohmann::json report = result.json();
  EXPECT_EQ(report["batches"], nlohmann::json({1, 2}));
  const nlohmann::json &mamba = report["models"][0], &neox = report["models"][1];
  EXPECT_GT(neox["tokens_per_second"][1], 0);
  EXPECT_GT(mamba["step_seconds"][1], 0);
  EXPECT_EQ(mamba["context_bytes"][0], mamba["context_bytes"][1]);
  EXPECT_EQ(neox["context_bytes"][0], 64 * 256);
  EXPECT_GT(neox["step_seconds"][0], 0);
  EXPECT_TRUE(neox["step_seconds"][1].is_null());  // 100,000 tokens take 25.6 MB
  EXPECT_NE(result.err.find("--kv-memory"), std::string::npos) << result.err;
  std::ifstream in(drawing);
  const std::string svg{std::istreambuf_iterator<char>(in), {}};
  EXPECT_EQ(svg.find("nan"), svg.npos);
  EXPECT_NE(svg.find("neox-default"), svg.npos);
  EXPECT_NE(svg.find("K</text>"), svg.npos);  // not 1000, nor 1e+06
  EXPECT_EQ(svg.find("1e+"), svg.npos);
  const std::string table = ssm(arguments).out;
  EXPECT_NE(table.find("100000"), table.npos) << table;
}

TEST(CommandAttention, TrainsAndTakesAdapters) {
  const TempFolder folder;
  const std::string text = folder / "text.txt", config = folder / "config.json";
  std::ofstream(text) << std::string(3000, 'a') + std::string(3000, 'b');
  for (const bool neox : {true, false}) {
    nlohmann::json about;
    if (neox) {
      about = {{"model_type", "gpt_neox"}, {"vocab_size", 256},        {"hidden_size", 32},
               {"num_hidden_layers", 2},   {"num_attention_heads", 4}, {"intermediate_size", 64}};
    } else {
      about = {{"d_model", 32},
               {"n_layer", 2},
               {"vocab_size", 256},
               {"d_intermediate", 128},
               {"ssm_cfg", {{"layer", "Mamba2"}, {"headdim", 16}, {"d_state", 8}}},
               {"attn_layer_idx", {1}},
               {"attn_cfg", {{"causal", true}, {"num_heads", 4}, {"num_heads_kv", 2}, {"d_conv", 3}}}};
    }
    std::ofstream(config) << about.dump();
    const fs::path run = folder / (neox ? "neox" : "hybrid");
    const CommandResult trained =
        ssm({"train", text, "--out", run, "--config", config, "--tokenizer", "bytes", "--steps", "30",
             "--batch", "2", "--length", "64", "--lr", "3e-3"});
    ASSERT_EQ(trained.code, 0) << trained.err;
    const nlohmann::json scored = ssm({"score", run, "--tokens", "97,97,97,97,97,97,97,97", "--json"}).json();
    EXPECT_LT(scored["perplexity"].get<double>(), 20) << scored;
    if (!neox) continue;
    // Packed rows are put into GGUF's order and back.
    const std::string file = folder / "packed.gguf", packed = folder / "packed";
    ASSERT_EQ(ssm({"quantize", run, file, "--type", "q8_0"}).code, 0);
    ASSERT_EQ(ssm({"quantize", run, packed, "--type", "q8_0"}).code, 0);
    const auto score = [](const std::string& model) {
      return ssm({"score", model, "--tokens", "97,98,97,99,100,97,97,98", "--json"}).out;
    };
    EXPECT_EQ(score(file), score(packed));
  }
}

}  // namespace
}  // namespace ssm::test
