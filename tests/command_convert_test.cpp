// ssm convert, and GGUF files wherever a model goes.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/command_runner.h"

namespace ssm::test {
namespace {

namespace fs = std::filesystem;

const fs::path kModels = kSource / "tests/goldens/models";

void expect_refusal(int code, const std::string& part, const std::vector<std::string>& arguments) {
  const CommandResult result = ssm(arguments);
  EXPECT_EQ(result.code, code) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
}

TEST(CommandConvert, AFileIsAModel) {
  const TempFolder folder;
  const std::string file = folder / "tale.gguf";
  EXPECT_EQ(ssm({"convert", kBundled, file}).code, 0);
  EXPECT_NE(ssm({"info", file}).out.find("gguf"), std::string::npos);
  const std::vector<std::string> rest{"Once upon a time", "--temperature", "0", "--max-new-tokens", "12"};
  const auto generate = [&](const std::string& model) {
    std::vector<std::string> arguments{"generate", model};
    arguments.insert(arguments.end(), rest.begin(), rest.end());
    return ssm(arguments).out;
  };
  EXPECT_EQ(generate(file), generate(kBundled));
  EXPECT_EQ(ssm({"tokenize", file}, "caf\xC3\xA9  <|endoftext|>").out,
            ssm({"tokenize"}, "caf\xC3\xA9  <|endoftext|>").out);
  EXPECT_EQ(ssm({"convert", file, folder / "back"}).code, 0);
  EXPECT_EQ(generate(folder / "back"), generate(kBundled));
  EXPECT_EQ(
      ssm({"convert", kModels / "mistral-tiny", folder / "original", "--to", "original", "--dtype", "f32"})
          .code,
      0);
  EXPECT_TRUE(fs::exists(folder / "original/pytorch_model.bin"));
}

TEST(CommandConvert, SaysWhatIsWrong) {
  const TempFolder folder;
  const std::string file = folder / "x.gguf";
  expect_refusal(2, "--to", {"convert", kBundled, file, "--to", "onnx"});
  expect_refusal(2, "DST", {"convert", kBundled});
  expect_refusal(1, "exists already", {"convert", kBundled, folder.path()});
  expect_refusal(1, "use_bias is true", {"convert", kModels / "mamba-bias", file});
  std::ofstream(file) << "GGUF\x03";
  expect_refusal(1, "not a GGUF file", {"info", file});
  expect_refusal(1, "not a GGUF file", {"tokenize", file});
}

}  // namespace
}  // namespace ssm::test
