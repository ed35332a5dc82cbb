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

TEST(CommandConvert, TheTokenizerComesAlong) {
  const TempFolder folder;
  const auto ids = [](const std::string& model) { return ssm({"tokenize", model}, "Once upon a time").out; };
  // The name that Mistral's folders have.
  fs::copy(kModels / "mistral-tiny", folder / "mistral");
  const fs::path sentencepiece = kSource / "tests/goldens/tokenizers/sentencepiece-bpe.model";
  fs::copy(sentencepiece, folder / "mistral/tokenizer.model.v3");
  ASSERT_EQ(ssm({"convert", folder / "mistral", folder / "v3"}).code, 0);
  EXPECT_NE(ids(folder / "v3"), "");
  EXPECT_EQ(ids(folder / "v3"), ids(folder / "mistral"));
  // A file that is given, whatever its name.
  fs::copy(kBundled + "/tokenizer.json", folder / "mine.json");
  fs::copy(sentencepiece, folder / "mine.bin");
  ASSERT_EQ(ssm({"convert", kBundled, folder / "json", "--tokenizer", folder / "mine.json"}).code, 0);
  EXPECT_EQ(ids(folder / "json"), ids(kBundled));
  ASSERT_EQ(ssm({"convert", kBundled, folder / "model", "--tokenizer", folder / "mine.bin"}).code, 0);
  EXPECT_EQ(ids(folder / "model"), ids(folder / "mistral"));
}

// Its program knows it without a file, others read tokenizer_config.json.
TEST(CommandConvert, TextsOfAMistralModelBeginWithBosAfterwardsToo) {
  const TempFolder folder;
  fs::copy(kModels / "mistral-tiny", folder / "mistral");
  fs::copy(kSource / "tests/goldens/tokenizers/sentencepiece-bpe.model",
           folder / "mistral/tokenizer.model.v3");
  const auto tokenizer = [&](const char* model) {
    return ssm({"info", folder / model, "--json"}).json()["tokenizer"];
  };
  ASSERT_TRUE(tokenizer("mistral")["text_begins_with_bos"].get<bool>());
  ASSERT_EQ(ssm({"convert", folder / "mistral", folder / "hf"}).code, 0);
  EXPECT_EQ(tokenizer("hf"), tokenizer("mistral"));
  ASSERT_EQ(ssm({"quantize", folder / "mistral", folder / "packed", "--type", "q8_0"}).code, 0);
  EXPECT_EQ(tokenizer("packed"), tokenizer("mistral"));
  std::ifstream in(folder / "hf/tokenizer_config.json");
  const nlohmann::json config = nlohmann::json::parse(in);
  EXPECT_EQ(config["add_bos_token"], true);
  EXPECT_EQ(config["bos_token"], "<s>");
  EXPECT_EQ(config["eos_token"], "</s>");
}

TEST(CommandConvert, SaysWhatIsWrong) {
  const TempFolder folder;
  const std::string file = folder / "x.gguf";
  expect_refusal(2, "--to", {"convert", kBundled, file, "--to", "onnx"});
  expect_refusal(2, "DST", {"convert", kBundled});
  expect_refusal(1, "exists already", {"convert", kBundled, folder.path()});
  const std::string none = folder / "none", out = folder / "out";
  expect_refusal(1, none + ": no such file or folder", {"convert", kBundled, out, "--tokenizer", none});
  expect_refusal(1, kTiny + ": no tokenizer", {"convert", kBundled, out, "--tokenizer", kTiny});
  EXPECT_FALSE(fs::exists(out));
  expect_refusal(1, "use_bias is true", {"convert", kModels / "mamba-bias", file});
  std::ofstream(file) << "GGUF\x03";
  expect_refusal(1, "not a GGUF file", {"info", file});
  expect_refusal(1, "not a GGUF file", {"tokenize", file});
}

}  // namespace
}  // namespace ssm::test
