#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "ssm/core/parallel.h"
#include "ssm/core/test_folder.h"
#include "ssm/ops/test_util.h"
#include "ssm/runtime/generate.h"
#include "ssm/runtime/score.h"
#include "ssm/runtime/stop_matcher.h"

namespace ssm {
namespace {

namespace fs = std::filesystem;

LoadedModel golden_model(const std::string& name) {
  return load_model(fs::path(SSM_SOURCE_DIR) / "tests/goldens/models" / name,
                    {.compute = DType::f32, .tokenizer = {}});
}
LoadedModel bundled_model() {
  return load_model(fs::path(SSM_SOURCE_DIR) / "models/tale-10m", {.compute = DType::f32, .tokenizer = {}});
}

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

std::vector<Generated> generate(const LoadedModel& model, const std::vector<std::vector<int32_t>>& prompts,
                                const GenerateOptions& options, const Generator::OnToken& on_token = {}) {
  Generator generator(model, static_cast<int64_t>(prompts.size()));
  for (const auto& prompt : prompts) generator.add(prompt);
  return generator.run(options, on_token);
}

using test::TempFolder;

TEST(Generate, ABatchOfUnequalPromptsEqualsEachAlone) {
  for (const char* name :
       {"mamba-default", "mamba2-default", "falcon-default", "neox-default", "hybrid-attn"}) {
    const LoadedModel model = golden_model(name);
    const std::vector<std::vector<int32_t>> prompts{
        {5}, {1, 2, 3, 4, 5, 6, 7}, std::vector<int32_t>(700, 9), {8, 8}};
    for (const float temperature : {0.0f, 1.0f}) {
      GenerateOptions options{
          .sampling = {.temperature = temperature, .top_k = 20, .repetition_penalty = 1.1f, .seed = 5},
          .max_new_tokens = 12,
          .stop = {},
          .ignore_eos = true};
      const std::vector<Generated> batch = generate(model, prompts, options);
      for (size_t i = 0; i < prompts.size(); ++i) {
        options.sampling.seed = 5 + i;
        EXPECT_EQ(generate(model, {prompts[i]}, options)[0].ids, batch[i].ids) << name << " prompt " << i;
      }
    }
  }
}

TEST(Generate, AClearedGeneratorIsAsNew) {
  const LoadedModel model = golden_model("mamba-default");
  const GenerateOptions options{.sampling = {.temperature = 1, .repetition_penalty = 1.5f, .seed = 3},
                                .max_new_tokens = 20,
                                .stop = {},
                                .ignore_eos = true};
  Generator generator(model, 2);
  generator.add(std::vector<int32_t>{7, 7, 1});
  generator.add(std::vector<int32_t>{2});
  const auto first = generator.run(options);
  for (int round = 0; round < 2; ++round) {
    generator.clear();
    EXPECT_EQ(generator.add(std::vector<int32_t>{7, 7, 1}), 0u);
    generator.add(std::vector<int32_t>{2});
    const auto again = generator.run(options);
    EXPECT_EQ(again[0].ids, first[0].ids);
    EXPECT_EQ(again[1].ids, first[1].ids);
  }
}

TEST(Generate, TheSameSeedGivesTheSameTextOnAnyNumberOfThreads) {
  const LoadedModel model = bundled_model();
  const std::vector<int32_t> prompt = model.tokenizer->encode("Once upon a time");
  const GenerateOptions options{.sampling = {.temperature = 0.9f, .top_p = 0.95f, .seed = 42},
                                .max_new_tokens = 40,
                                .stop = {},
                                .ignore_eos = true};
  set_num_threads(1);
  const std::string text = generate(model, {prompt}, options)[0].text;
  EXPECT_GT(text.size(), 40u);
  for (const int threads : {2, 3, 5}) {
    set_num_threads(threads);
    EXPECT_EQ(generate(model, {prompt}, options)[0].text, text);
  }
  set_num_threads(0);
  GenerateOptions other = options;
  other.sampling.seed = 43;
  EXPECT_NE(generate(model, {prompt}, other)[0].text, text);
}

TEST(Generate, StopsAtAStopStringAndStreamsExactlyTheText) {
  const LoadedModel model = bundled_model();
  const std::vector<int32_t> prompt = model.tokenizer->encode("Once upon a time");
  GenerateOptions options{
      .sampling = {.temperature = 0}, .max_new_tokens = 60, .stop = {}, .ignore_eos = true};
  const std::string whole = generate(model, {prompt}, options)[0].text;
  const size_t cut = whole.size() / 2;
  options.stop = {"\x01", whole.substr(cut, 7)};
  std::string streamed;
  const Generated stopped = generate(model, {prompt}, options, [&](size_t, int32_t, std::string_view text) {
    streamed += text;
    return true;
  })[0];
  EXPECT_EQ(stopped.text, whole.substr(0, whole.find(options.stop[1])));
  EXPECT_EQ(streamed, stopped.text);
  EXPECT_EQ(stopped.reason, StopReason::stop);
  int calls = 0;
  const Generated cancelled =
      generate(model, {prompt}, options, [&](size_t, int32_t, std::string_view) { return ++calls < 3; })[0];
  EXPECT_EQ(cancelled.ids.size(), 3u);
  EXPECT_EQ(cancelled.reason, StopReason::cancelled);
}

TEST(Generate, ASavedStateGoesOnAsIfNothingHadHappened) {
  const TempFolder folder;
  for (const char* name : {"mamba-default", "mamba2-groups2", "falcon-default", "mamba-conv2", "neox-serial",
                           "hybrid-attn", "hybrid-mlp"}) {
    const LoadedModel model = golden_model(name);
    GenerateOptions options{.sampling = {.temperature = 0.8f, .repetition_penalty = 1.3f, .seed = 3},
                            .max_new_tokens = 30,
                            .stop = {},
                            .ignore_eos = true};
    const std::vector<int32_t> prompt{3, 1, 4, 1, 5, 9, 2, 6};
    const std::vector<int32_t> whole = generate(model, {prompt}, options)[0].ids;
    for (const int64_t first : {0, 1, 13}) {
      Generator before(model, 1);
      before.add(prompt);
      options.max_new_tokens = first;
      std::vector<int32_t> ids = before.run(options)[0].ids;
      before.save(0, folder / "s.state");
      Generator after(model, 2);
      options.max_new_tokens = 30 - first;
      after.add({}, folder / "s.state");
      const std::vector<int32_t> rest = after.run(options)[0].ids;
      ids.insert(ids.end(), rest.begin(), rest.end());
      EXPECT_EQ(ids, whole) << name << " saved after " << first;
    }
    options.max_new_tokens = 30;
  }
}

TEST(StateFile, NamesWhatDoesNotFit) {
  const TempFolder folder;
  const LoadedModel one = golden_model("mamba-default"), other = golden_model("mamba-state5"),
                    two = golden_model("mamba2-default");
  Generator generator(one, 1);
  generator.add(std::vector<int32_t>{1, 2, 3});
  generator.run({.sampling = {.temperature = 0}, .max_new_tokens = 2, .stop = {}, .ignore_eos = true});
  const fs::path file = folder / "a.state";
  generator.save(0, file);
  const auto load = [&](const LoadedModel& model) {
    return error_of([&] { Generator(model, 1).add(std::vector<int32_t>{1}, file); });
  };
  EXPECT_EQ(load(one), "");
  EXPECT_NE(load(other).find("tensor layers.0.ssm"), std::string::npos) << load(other);
  EXPECT_NE(load(two).find("the state of a mamba model"), std::string::npos) << load(two);
  std::ifstream in(file, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(in), {}};
  for (size_t n = 0; n < bytes.size(); n += 1 + bytes.size() / 97) {
    std::ofstream(file, std::ios::binary) << bytes.substr(0, n);
    EXPECT_NE(load(one).find("a.state"), std::string::npos) << "cut to " << n << ": " << load(one);
  }
  const fs::path model_file =
      fs::path(SSM_SOURCE_DIR) / "tests/goldens/models/mamba-default/model.safetensors";
  EXPECT_NE(error_of([&] { Generator(one, 1).add({}, model_file); }).find("not a state file"),
            std::string::npos);
}

TEST(StateFile, RefusesToSaveWhatItCouldNotLoad) {
  const TempFolder folder;
  const LoadedModel model = golden_model("mamba-default");
  Generator generator(model, 1);
  generator.add(std::vector<int32_t>(70'000, 1));
  const fs::path file = folder / "long.state";
  EXPECT_NE(error_of([&] { generator.save(0, file); }).find("70000 tokens are not read yet"),
            std::string::npos);
  EXPECT_FALSE(fs::exists(file));
}

TEST(StatePool, AcquiresForksAndReleases) {
  const LoadedModel model = golden_model("mamba2-default");
  StatePool pool(*model.model, 3);
  SequenceRunner runner(*model.model, pool);
  const int32_t a = pool.acquire();
  const std::vector<int32_t> ids{1, 2, 3}, next{4};
  const std::vector<SequenceRunner::Input> first{{a, ids}};
  runner.hidden(first);
  const int32_t b = pool.fork(a);
  EXPECT_NE(a, b);
  const std::vector<SequenceRunner::Input> both{{b, next}, {a, next}};
  const Tensor logits = runner.logits(runner.hidden(both));
  EXPECT_TRUE(test::same_bits(logits.slice(0, 0, 1), logits.slice(0, 1, 2)));
  pool.acquire();
  EXPECT_EQ(error_of([&] { pool.acquire(); }), "all 3 state slots are in use");
  pool.release(b);
  EXPECT_EQ(error_of([&] { pool.release(b); }), fmt::format("state slot {} is not in use", b));
  const int32_t again = pool.acquire();
  pool.for_each_row(again, [](size_t, std::string_view, const Tensor& row) {
    for (const float x : row.values<float>()) ASSERT_EQ(x, 0);
  });
}

TEST(Score, AgreesWithTheLogits) {
  for (const char* name : {"mamba-default", "mamba2-default", "neox-default"}) {
    const LoadedModel model = golden_model(name);
    std::vector<int32_t> ids;
    Rng rng(1);
    for (int i = 0; i < 1300; ++i) ids.push_back(static_cast<int32_t>(rng.below(model.model->vocab_size())));
    const auto T = static_cast<int64_t>(ids.size());
    const Tensor logits = model.model->logits(
        model.model->hidden(Tensor::from_values<int32_t>(ids, {T}), SequenceBatch::single(T), {}));
    int64_t expected = 0;
    score(model, ids, [&](const TokenScore& s) {
      ASSERT_EQ(s.position, expected++);
      const float* row = logits.data<float>() + s.position * logits.size(1);
      EXPECT_EQ(s.argmax, std::max_element(row, row + logits.size(1)) - row);
      if (s.position == 0) {
        EXPECT_TRUE(std::isnan(s.logprob));
        return;
      }
      const float* before = row - logits.size(1);
      double sum = 0;
      for (int64_t v = 0; v < logits.size(1); ++v) sum += std::exp(static_cast<double>(before[v]));
      EXPECT_NEAR(s.logprob, before[ids[static_cast<size_t>(s.position)]] - std::log(sum), 2e-5);
    });
    EXPECT_EQ(expected, T);
  }
}

TEST(StopMatcher, HoldsBackWhatMayBecomeAStopString) {
  StopMatcher matcher({"</s>", "END"});
  EXPECT_EQ(matcher.push("a<"), "a");
  EXPECT_EQ(matcher.push("/b"), "</b");
  EXPECT_EQ(matcher.push("xEN"), "x");
  EXPECT_FALSE(matcher.matched());
  EXPECT_EQ(matcher.push("Dy"), "");
  EXPECT_TRUE(matcher.matched());
  EXPECT_EQ(matcher.finish(), "");
  StopMatcher other({"abc"});
  EXPECT_EQ(other.push("ab"), "");
  EXPECT_EQ(other.finish(), "ab");
}

}  // namespace
}  // namespace ssm
