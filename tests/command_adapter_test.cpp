// --adapter, ssm merge and ssm finetune as a user runs them.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>

#include "ssm/io/safetensors.h"
#include "tests/command_runner.h"

namespace ssm::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Words = std::vector<std::string>;

const fs::path kModels = kSource / "tests/goldens/models", kAdapters = kSource / "tests/goldens/adapters";

Json json_of(Words arguments) {
  arguments.emplace_back("--json");
  const CommandResult result = ssm(arguments);
  EXPECT_EQ(result.code, 0) << result.err;
  return result.code == 0 ? result.json() : Json();
}

Json read_json(const fs::path& path) {
  std::ifstream in(path);
  EXPECT_TRUE(in) << path;
  return Json::parse(in, nullptr, false);
}

std::string prompt_of(const std::string& model) {
  const auto golden = io::SafetensorsFile::open(kModels / model / "golden.safetensors");
  const Tensor tokens = golden->find("tokens").value();
  return joined({tokens.values<int64_t>().begin(), tokens.values<int64_t>().end()});
}

void expect_golden_scores(const Json& scored, const std::string& adapter) {
  const auto golden = io::SafetensorsFile::open(kAdapters / adapter / "golden.safetensors");
  const Tensor logits = golden->find("logits").value();
  ASSERT_EQ(std::ssize(scored["tokens"]), logits.size(0));
  for (int64_t t = 0; t + 1 < logits.size(0); ++t) {
    const auto row = logits.select(0, t).values<float>();
    double sum = 0;
    for (const float x : row) sum += std::exp(static_cast<double>(x));
    const size_t next = scored["tokens"][static_cast<size_t>(t + 1)];
    EXPECT_NEAR(scored["logprobs"][static_cast<size_t>(t + 1)].get<double>(), row[next] - std::log(sum), 1e-3)
        << adapter << " " << t;
  }
}

TEST(CommandAdapter, ScoresAndGeneratesAsPeft) {
  for (const auto& [adapter, model] :
       {std::pair("mamba-recipe", "mamba-default"), {"mamba2-out", "mamba2-default"}}) {
    const std::string folder = kModels / model, tokens = prompt_of(model);
    const Words common{"--tokens", tokens, "--dtype", "f32", "--adapter", kAdapters / adapter};
    Words score{"score", folder}, generate{"generate", folder, "--temperature", "0", "-n", "1"};
    score.insert(score.end(), common.begin(), common.end());
    generate.insert(generate.end(), common.begin(), common.end());
    const Json scored = json_of(score);
    expect_golden_scores(scored, adapter);
    EXPECT_EQ(json_of(generate)["tokens"][0], scored["argmax"].back()) << adapter;
  }
}

TEST(CommandAdapter, MergedModelScoresTheSame) {
  const TempFolder out;
  const fs::path merged = out / "merged";
  const CommandResult result = ssm({"merge", kModels / "mamba-default", kAdapters / "mamba-recipe", merged});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_NE(result.err.find("embedding and the head differ"), std::string::npos) << result.err;
  EXPECT_EQ(read_json(merged / "config.json")["tie_word_embeddings"], false);
  EXPECT_TRUE(io::SafetensorsFile::open(merged / "model.safetensors")->find("lm_head.weight"));
  expect_golden_scores(json_of({"score", merged, "--tokens", prompt_of("mamba-default"), "--dtype", "f32"}),
                       "mamba-recipe");

  const fs::path half = out / "half";
  ASSERT_EQ(
      ssm({"merge", kModels / "mamba2-default", kAdapters / "mamba2-out", half, "--dtype", "bf16"}).code, 0);
  const auto file = io::SafetensorsFile::open(half / "model.safetensors");
  EXPECT_EQ(file->find("backbone.layers.0.mixer.out_proj.weight")->dtype(), DType::bf16);
  EXPECT_EQ(file->find("backbone.layers.0.mixer.A_log")->dtype(), DType::f32);
  EXPECT_FALSE(file->find("lm_head.weight"));
}

void expect_failure(const Words& arguments, int code, const Words& parts) {
  const CommandResult result = ssm(arguments);
  EXPECT_EQ(result.code, code) << result.err;
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  for (const std::string& part : parts) EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
}

TEST(CommandAdapter, FailuresNameTheFile) {
  const TempFolder out;
  const std::string mamba = kModels / "mamba-default", other = kAdapters / "mamba2-out";
  expect_failure({"score", mamba, "--tokens", "1,2", "--adapter", out.path()}, 1, {"adapter_config.json"});
  expect_failure({"score", mamba, "--tokens", "1,2", "--adapter", other}, 1,
                 {"adapter_model.safetensors", "mixer."});
  expect_failure({"merge", mamba, other, out / "merged"}, 1, {"adapter_model.safetensors"});
  EXPECT_FALSE(fs::exists(out / "merged"));
  expect_failure({"merge", mamba, kAdapters / "mamba-recipe", out.path()}, 1, {"exists already"});
  expect_failure({"merge", mamba, kAdapters / "mamba-recipe"}, 2, {"OUT"});
  expect_failure({"finetune", "x.txt", "--out", out / "run", "--target-modules", "q_proj"}, 2, {"q_proj"});
}

// MODEL stands before DATA, as with other verbs, or behind --from.
TEST(CommandFinetune, TakesItsModelBeforeTheData) {
  const TempFolder folder;
  for (const char* name : {"a.txt", "b.txt"}) std::ofstream(folder / name) << "Once upon a time, " << name;
  fs::copy(kBundled, folder / "model");
  const auto base_of = [&](const Words& arguments) {
    Words words{"finetune"};
    words.insert(words.end(), arguments.begin(), arguments.end());
    const std::string out = folder / ("out" + std::to_string(std::rand()));
    for (const char* more : {"--steps", "1", "--length", "8", "--batch", "1", "--device", "cpu", "--out"})
      words.emplace_back(more);
    words.push_back(out);
    const CommandResult result = ssm(words);
    EXPECT_EQ(result.code, 0) << result.err;
    std::ifstream config(out + "/adapter_config.json");
    return nlohmann::json::parse(config)["base_model_name_or_path"].get<std::string>();
  };
  const std::string model = folder / "model", a = folder / "a.txt", b = folder / "b.txt";
  EXPECT_EQ(base_of({model, a, b}), model);
  EXPECT_EQ(base_of({a, "--from", model}), model);
  EXPECT_EQ(base_of({"--from", model, a, b}), model);
  EXPECT_NE(base_of({a}), model);  // the bundled one
  EXPECT_NE(base_of({a, b}), a);
  expect_failure({"finetune", model, "--out", folder / "x"}, 2, {"DATA is required"});
  expect_failure({"finetune", model, a, "--from", model, "--out", folder / "x"}, 2, {"two models"});
  expect_failure({"finetune", folder / "none.txt", a, "--out", folder / "x"}, 1, {"none.txt: no such file"});
}

// The bundled model on a short text; small enough to run twice.
class Finetuning {
 public:
  Finetuning() {
    std::ofstream text(folder_ / "text.csv");
    text << "quote\n";
    for (int i = 0; i < 60; ++i)
      text << "\"Count to " << i << " and say: the seventh son of the seventh son.\"\n";
  }

  CommandResult run(const std::string& out, const Words& more) const {
    Words words{
        "finetune", folder_ / "text.csv", "--column", "quote",    "--out", folder_ / out, "--batch",
        "2",        "--length",           "32",       "--device", "cpu",   "--json",      "--log-every",
        "1"};
    words.insert(words.end(), more.begin(), more.end());
    Command command(words);
    command.environment = {{"XDG_CACHE_HOME", folder_ / "cache"}};
    return command.run();
  }
  fs::path out(const std::string& name) const { return folder_ / name; }

 private:
  TempFolder folder_;
};

std::string bytes_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(CommandFinetune, LearnsWritesAnAdapterAndResumesToTheBit) {
  const Finetuning tuning;
  const Words options{"--target-modules",
                      "in_proj,out_proj,embeddings",
                      "--train",
                      "A_log,conv1d",
                      "--r",
                      "4",
                      "--lora-alpha",
                      "8",
                      "--lora-dropout",
                      "0.1",
                      "--steps",
                      "8"};
  const CommandResult whole = tuning.run("whole", options);
  ASSERT_EQ(whole.code, 0) << whole.err;
  EXPECT_EQ(whole.json()["finished"], true);
  const Json config = read_json(tuning.out("whole") / "adapter_config.json");
  EXPECT_EQ(config["peft_type"], "LORA");
  EXPECT_EQ(config["r"], 4);
  EXPECT_EQ(config["lora_alpha"], 8);
  EXPECT_EQ(config["target_modules"], Json::parse(R"(["in_proj","out_proj","embeddings"])"));
  EXPECT_EQ(config["modules_to_save"], Json::parse(R"(["A_log","conv1d"])"));
  EXPECT_FALSE(fs::exists(tuning.out("whole") / "model.safetensors"));
  EXPECT_TRUE(fs::exists(tuning.out("whole") / "report.html"));

  const std::string sentence = "The seventh son of the seventh son";
  const Json before = ssm({"score", "--device", "cpu", "--json"}, sentence).json();
  const Json after =
      ssm({"score", "--device", "cpu", "--json", "--adapter", tuning.out("whole")}, sentence).json();
  EXPECT_LT(after["nll"].get<double>(), 0.9 * before["nll"].get<double>());

  // The schedule belongs to all eight steps; checkpoints are kept after the third, and the run is lost there.
  Words cut = options;
  cut.insert(cut.end(), {"--save-every", "3", "--keep", "9"});
  ASSERT_EQ(tuning.run("cut", cut).code, 0);
  for (const char* gone : {"adapter_model.safetensors", "adapter_config.json", "checkpoints/step-00000006",
                           "checkpoints/step-00000008"}) {
    EXPECT_GT(fs::remove_all(tuning.out("cut") / gone), 0u) << gone;
  }
  EXPECT_TRUE(fs::exists(tuning.out("cut") / "checkpoints/step-00000003/adapter_model.safetensors"));
  cut.emplace_back("--resume");
  const CommandResult resumed = tuning.run("cut", cut);
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_EQ(bytes_of(tuning.out("cut") / "adapter_model.safetensors"),
            bytes_of(tuning.out("whole") / "adapter_model.safetensors"));
}

double largest_difference(const fs::path& a, const fs::path& b) {
  const auto x = io::SafetensorsFile::open(a), y = io::SafetensorsFile::open(b);
  double largest = 0;
  EXPECT_EQ(x->names(), y->names());
  for (const std::string& name : x->names()) {
    const Tensor p = x->find(name).value(), q = y->find(name).value();
    for (int64_t i = 0; i < p.numel(); ++i) {
      const auto at = static_cast<size_t>(i);
      largest = std::max<double>(largest, std::abs(p.values<float>()[at] - q.values<float>()[at]));
    }
  }
  return largest;
}

TEST(CommandFinetune, GoesOnFromAnAdapter) {
  const Finetuning tuning;
  ASSERT_EQ(tuning
                .run("a", {"--r", "4", "--lora-alpha", "12", "--use-rslora", "--bias", "all", "--train",
                           "A_log", "--target-modules", "in_proj,out_proj", "--steps", "6"})
                .code,
            0);
  const std::string a = tuning.out("a");
  const CommandResult still = tuning.run("still", {"--adapter", a, "--steps", "1", "--lr", "1e-12"});
  ASSERT_EQ(still.code, 0) << still.err;
  EXPECT_EQ(read_json(tuning.out("still") / "adapter_config.json"),
            read_json(tuning.out("a") / "adapter_config.json"));
  const auto file = [&](const char* out) { return tuning.out(out) / "adapter_model.safetensors"; };
  EXPECT_LT(largest_difference(file("a"), file("still")), 1e-6) << "it begins where the other ended";
  const CommandResult further = tuning.run("b", {"--adapter", a, "--steps", "6", "--lora-dropout", "0.05"});
  ASSERT_EQ(further.code, 0) << further.err;
  EXPECT_GT(largest_difference(file("a"), file("b")), 1e-4);
  EXPECT_EQ(read_json(tuning.out("b") / "adapter_config.json")["lora_dropout"], 0.05);
  const auto nll = [&](const char* out) {
    return ssm({"score", "--device", "cpu", "--json", "--adapter", tuning.out(out)},
               "Count to 7 and say: the seventh son")
        .json()["nll"]
        .get<double>();
  };
  EXPECT_LT(nll("b"), nll("a"));

  const CommandResult both = tuning.run("c", {"--adapter", a, "--r", "4"});
  EXPECT_EQ(both.code, 2);
  const CommandResult other = tuning.run("c", {"--adapter", kAdapters / "mamba-recipe"});
  EXPECT_EQ(other.code, 1);
  EXPECT_NE(other.err.find("mamba-recipe"), std::string::npos) << other.err;
  Json config = read_json(tuning.out("a") / "adapter_config.json");
  config["modules_to_save"] = Words{"A_log", "D"};
  std::ofstream(tuning.out("a") / "adapter_config.json") << config;
  const CommandResult missing = tuning.run("c", {"--adapter", a});
  EXPECT_EQ(missing.code, 1);
  EXPECT_NE(missing.err.find("mixer.D is to be trained, but is not among its tensors"), std::string::npos)
      << missing.err;
}

// The chats of a tuned model.
TEST(CommandFinetune, LearnsTheAnswersOfConversations) {
  const TempFolder folder;
  const auto write = [&](const char* name, const std::string& text) { std::ofstream(folder / name) << text; };
  std::string chats;
  for (const char* answer : {"red", "blue", "green"}) {
    chats += Json{{"messages",
                   {{{"role", "user"}, {"content", std::string("The colour of ") + answer + " paint?"}},
                    {{"role", "assistant"}, {"content", answer}},
                    {{"role", "user"}, {"content", "Sure?"}},
                    {{"role", "assistant"}, {"content", std::string("Yes, ") + answer}}}}}
                 .dump() +
             "\n";
  }
  write("chats.jsonl", chats);
  write("mine.jinja",
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}");
  const auto finetune = [&](const char* out, const Words& more) {
    Words words{"finetune", folder / "chats.jsonl",
                "--out",    folder / out,
                "--batch",  "1",
                "--length", "96",
                "--device", "cpu",
                "--json",   "--lr",
                "1e-2"};
    words.insert(words.end(), more.begin(), more.end());
    Command command(words);
    command.environment = {{"XDG_CACHE_HOME", folder / "cache"}};
    return command.run();
  };
  const CommandResult tuned = finetune("tuned", {"--chat-template", folder / "mine.jinja", "--steps", "40"});
  ASSERT_EQ(tuned.code, 0) << tuned.err;
  EXPECT_LT(tuned.json()["loss"].get<double>(), 1.0);
  // The adapter carries the template it was trained with, and its checkpoints do.
  EXPECT_EQ(bytes_of(folder / "tuned/chat_template.jinja"), bytes_of(folder / "mine.jinja"));
  EXPECT_EQ(bytes_of(folder / "tuned/checkpoints/step-00000040/chat_template.jinja"),
            bytes_of(folder / "mine.jinja"));
  const CommandResult said = ssm({"chat", "--adapter", folder / "tuned", "--temperature", "0", "-n", "8"},
                                 "The colour of blue paint?\nSure?\n");
  EXPECT_EQ(said.out, "blue\nYes, blue\n") << said.err;

  write("chats.jsonl", R"({"messages":[{"role":"user","content":"Hi"}]})"
                       "\n");
  const CommandResult none = finetune("none", {"--steps", "1"});
  EXPECT_EQ(none.code, 1);
  EXPECT_EQ(none.err, "ssm: " + std::string(folder / "chats.jsonl") +
                          ":1: messages: none of them is the assistant's\n");
}

TEST(CommandFinetune, Refuses) {
  const Finetuning tuning;
  const CommandResult both =
      tuning.run("a", {"--steps", "1", "--train", "in_proj", "--target-modules", "in_proj"});
  EXPECT_EQ(both.code, 1);
  EXPECT_NE(both.err.find("in_proj"), std::string::npos) << both.err;
  for (const char* bad : {"0", "x", "inf"}) {
    const CommandResult alpha = tuning.run("c", {"--steps", "1", "--lora-alpha", bad});
    EXPECT_EQ(alpha.code, 2);
    EXPECT_NE(alpha.err.find(std::string("--lora-alpha: ") + bad + " is not a number above 0"),
              std::string::npos)
        << alpha.err;
  }
  const CommandResult unknown = tuning.run("b", {"--steps", "1", "--train", "gates"});
  EXPECT_EQ(unknown.code, 1);
  EXPECT_NE(unknown.err.find("gates"), std::string::npos) << unknown.err;
}

}  // namespace
}  // namespace ssm::test
