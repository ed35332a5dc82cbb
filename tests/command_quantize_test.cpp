// ssm quantize and --quantize as a user runs them.
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "tests/command_runner.h"

namespace ssm::test {
namespace {

namespace fs = std::filesystem;

const std::string kText = kSource / "README.md";

std::string read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(CommandQuantize, MakesAFolderThatEveryVerbReads) {
  const TempFolder folder;
  const std::string small = folder / "small", report = folder / "report.json";
  const CommandResult made =
      ssm({"quantize", kBundled, small, "--type", "int4", "--group", "128", "--keep", "layers.0.",
           "--calibrate", kText, "--text", kText, "--report", report, "--json"});
  ASSERT_EQ(made.code, 0) << made.err;
  const nlohmann::json json = made.json();
  EXPECT_EQ(json, nlohmann::json::parse(read(report)));
  EXPECT_EQ(json["type"], "int4 group 128");
  EXPECT_TRUE(json["calibrated"].get<bool>());
  EXPECT_LT(json["bits_per_weight"].get<double>(), 8);  // a quarter of the layers in 16
  for (const nlohmann::json& tensor : json["tensors"]) {
    const std::string name = tensor["name"], type = tensor["type"];
    if (name == "backbone.embeddings.weight") {
      EXPECT_EQ(type, "int8 group 128");
    } else if (name.find("layers.1.") != name.npos && name.ends_with("in_proj.weight")) {
      EXPECT_EQ(type, "int4 group 128");
    } else if (name.find("layers.0.") != name.npos) {
      EXPECT_EQ(type, tensor["stored"].get<std::string>()) << name;
    }
  }
  EXPECT_GT(json["text"]["kl_divergence"].get<double>(), 0);
  EXPECT_LT(std::abs(json["text"]["perplexity_change"].get<double>()), 0.1);

  EXPECT_EQ(ssm({"info", small, "--json"}).json()["stored_dtype"], "bf16");  // layer 0's
  EXPECT_EQ(
      ssm({"generate", small, "Once", "-n", "3", "--temperature", "0", "--json"}).json()["tokens"].size(),
      3u);
  const CommandResult trained = ssm({"finetune", kSource / "CMakeLists.txt", "--from", small, "--out",
                                     folder / "lora", "--device", "cpu", "--steps", "1"});
  EXPECT_EQ(trained.code, 1);
  EXPECT_NE(trained.err.find("dense matrices: this model's are packed"), std::string::npos) << trained.err;
  EXPECT_EQ(ssm({"tokenize", small, "--json"}, "Once").json(),
            ssm({"tokenize", kBundled, "--json"}, "Once").json());
}

TEST(CommandQuantize, PrintsATable) {
  const TempFolder folder;
  const CommandResult made =
      ssm({"quantize", kBundled, folder / "a.gguf", "--type", "q4_k", "--report", "-"});
  ASSERT_EQ(made.code, 0) << made.err;
  EXPECT_NE(made.out.find("q5_k"), std::string::npos) << made.out;  // the embedding
  EXPECT_NE(made.out.find("bits a weight"), std::string::npos);
  EXPECT_EQ(made.out.find("perplexity"), std::string::npos);
  EXPECT_EQ(ssm({"info", folder / "a.gguf", "--json"}).json()["stored_dtype"], "q4_k");
}

TEST(CommandQuantize, QuantizesWhileLoading) {
  for (const std::vector<std::string>& verb :
       {std::vector<std::string>{"score", kBundled, "--tokens", "1,2,3,4"},
        {"generate", kBundled, "Once", "-n", "2", "--temperature", "0"},
        {"bench", kBundled, "--promptlen", "8", "--genlen", "2", "--repeats", "1"}}) {
    std::vector<std::string> arguments = verb;
    for (const char* more : {"--quantize", "q8_0", "--device", "cpu", "--json"}) arguments.emplace_back(more);
    const CommandResult result = ssm(arguments);
    ASSERT_EQ(result.code, 0) << result.err;
    if (verb[0] == "bench") {
      EXPECT_EQ(result.json()["stored_dtype"], "q8_0");
    }
  }
}

TEST(CommandQuantize, SaysWhatCannotBe) {
  const TempFolder folder;
  const std::string out = folder / "out";
  const auto fails = [&](int code, const std::vector<std::string>& arguments, const std::string& part) {
    const CommandResult result = ssm(arguments);
    EXPECT_EQ(result.code, code) << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_FALSE(fs::exists(out));
  };
  fails(2, {"quantize", kBundled, out}, "--type");
  fails(2, {"quantize", kBundled, out, "--type", "q3_k"}, "q3_k");
  fails(2, {"quantize", kBundled, out, "--type", "q4_0", "--group", "64"}, "--group 64");
  fails(2, {"quantize", kBundled, out, "--type", "int4", "--group", "48"}, "--group");
  fails(2, {"quantize", kBundled, out, "--type", "int4", "--text", kText}, "--text");
  fails(1, {"quantize", kBundled, out, "--type", "int4", "--calibrate", folder / "none"}, "none");
  fails(2, {"quantize", kBundled, folder / "x.gguf", "--type", "int4"}, "GGUF has no such type");
  fails(1, {"quantize", kTiny, out, "--type", "int4", "--calibrate", kText}, "tokenizer");
  fails(1, {"quantize", kTiny, out, "--type", "int4", "--text", kText, "--json"}, "tokenizer");
  fails(1, {"quantize", kBundled, out, "--type", "int4", "--text", folder / "none", "--json"}, "none");
  fails(1, {"quantize", kBundled, out, "--type", "int4", "--report", folder / "none/x"},
        "none/x: cannot create");
  fails(1, {"quantize", kBundled, folder.path(), "--type", "int4"}, "exists");
  fails(2, {"score", kBundled, "--tokens", "1,2", "--group", "64"}, "--quantize");
}

}  // namespace
}  // namespace ssm::test
