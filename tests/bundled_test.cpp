// The bundled model against Transformers (tests/goldens/tale-10m.json), and texts of a million tokens.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "ssm/core/rng.h"
#include "ssm/ops/test_util.h"
#include "ssm/runtime/generate.h"
#include "ssm/runtime/score.h"

namespace ssm {
namespace {

namespace fs = std::filesystem;

const fs::path kRoot = SSM_SOURCE_DIR;

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class Bundled : public testing::Test {
 protected:
  const LoadedModel model_ = load_model(kRoot / "models/tale-10m", {.compute = DType::f32, .tokenizer = {}});
  const nlohmann::json golden_ = nlohmann::json::parse(read_file(kRoot / "tests/goldens/tale-10m.json"));
};

TEST_F(Bundled, GreedyTextIsTransformers) {
  const nlohmann::json& greedy = golden_.at("greedy");
  const std::vector<int32_t> prompt = model_.tokenizer->encode(greedy.at("prompt").get<std::string>());
  EXPECT_EQ(prompt, greedy.at("prompt_ids").get<std::vector<int32_t>>());
  Generator generator(model_, 1);
  generator.add(prompt);
  const auto ids = greedy.at("ids").get<std::vector<int32_t>>();
  const Generated out = generator.run(
      {.sampling = {.temperature = 0}, .max_new_tokens = static_cast<int64_t>(ids.size()), .stop = {}})[0];
  EXPECT_EQ(out.ids, ids);
  EXPECT_EQ(out.text, greedy.at("text").get<std::string>());
}

TEST_F(Bundled, TokenScoresAreTransformers) {
  const nlohmann::json& expected = golden_.at("score");
  const auto ids = expected.at("ids").get<std::vector<int32_t>>();
  EXPECT_EQ(model_.tokenizer->encode(expected.at("text").get<std::string>()), ids);
  score(model_, ids, [&](const TokenScore& s) {
    const auto i = static_cast<size_t>(s.position);
    EXPECT_EQ(s.argmax, expected.at("argmax")[i].get<int32_t>());
    if (i > 0) {
      EXPECT_NEAR(s.logprob, expected.at("logprobs")[i].get<double>(), 1e-4) << i;
    }
  });
}

// What the 16-bit storage of a state costs where every token rounds it, in the next token's distribution.
TEST_F(Bundled, NarrowStatesCostLittle) {
  Generator generator(model_, 1);
  generator.add(std::vector<int32_t>{1});
  GenerateOptions options;
  options.sampling = {.temperature = 1, .seed = 1};
  options.max_new_tokens = 1500;
  options.ignore_eos = true;
  const std::vector<int32_t> ids = generator.run(options)[0].ids;
  const auto logits_with = [&](DType state) {
    StatePool pool(*model_.model, 1, state);
    SequenceRunner runner(*model_.model, pool);
    const int32_t slot = pool.acquire();
    std::vector<Tensor> rows;
    for (size_t i = 0; i < ids.size(); ++i) {
      const std::vector<SequenceRunner::Input> one{{.slot = slot, .ids = std::span(ids).subspan(i, 1)}};
      rows.push_back(runner.logits(runner.hidden(one)).select(0, 0).clone());
    }
    return rows;
  };
  const std::vector<Tensor> wide = logits_with(DType::f32);
  for (const auto& [state, bound] : {std::pair(DType::f16, 1e-5), std::pair(DType::bf16, 5e-4)}) {
    const std::vector<Tensor> narrow = logits_with(state);
    double sum = 0;
    for (size_t t = 0; t < wide.size(); ++t) sum += test::divergence(wide[t], narrow[t]);
    const double mean = sum / static_cast<double>(wide.size());
    fmt::print("  states in {}: mean KL divergence {:.2e} nats\n", name_of(state), mean);
    EXPECT_LT(mean, bound) << name_of(state);
    EXPECT_GT(mean, 0) << name_of(state);
  }
}

// The first 32,768 tokens of the held-out text; `ssm score --file` on all of it gives the golden's perplexity
// too.
TEST_F(Bundled, HeldOutTextHasTransformersPerplexity) {
  const fs::path file = kRoot / "../shared/corpus/valid.txt";
  if (!fs::exists(file)) GTEST_SKIP() << "no " << file << ": real text is not part of a clone";
  std::vector<int32_t> ids = model_.tokenizer->encode(read_file(file));
  EXPECT_EQ(static_cast<int64_t>(ids.size()), golden_.at("text").at("tokens").get<int64_t>());
  ids.resize(32768);
  double nll = 0;
  score(model_, ids, [&](const TokenScore& s) { nll -= s.position > 0 ? s.logprob : 0.0; });
  EXPECT_NEAR(nll, golden_.at("checks").at("first_32768_tokens").at("transformers_one_forward").get<double>(),
              0.1);
}

int64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * 4096;
}

TEST(LongText, AMillionTokensInConstantMemory) {
  for (const char* name : {"mamba-default", "mamba2-default"}) {
    const LoadedModel model =
        load_model(kRoot / "tests/goldens/models" / name, {.compute = DType::f32, .tokenizer = {}});
    Rng rng(1);
    std::vector<int32_t> ids(1'000'000);
    for (int32_t& id : ids) id = static_cast<int32_t>(rng.below(model.model->vocab_size()));
    int64_t early = 0, last = -1;
    double nll = 0;
    score(model, ids, [&](const TokenScore& s) {
      if (s.position == 20'000) early = resident_bytes();
      last = s.position;
      nll -= s.position > 0 ? s.logprob : 0.0;
    });
    EXPECT_EQ(last, 999'999);
    EXPECT_TRUE(std::isfinite(nll));
#if !defined(__SANITIZE_ADDRESS__)
    EXPECT_LT(resident_bytes() - early, 8 << 20) << name << ": memory grew with the text";
#endif
  }
}

}  // namespace
}  // namespace ssm
