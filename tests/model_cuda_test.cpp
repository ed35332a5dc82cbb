// Whole models on a card: against the CPU within the bounds of docs/numerics.md, in any batch and any pieces,
// states that go on on the other device, captured steps against steps that are not.
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "ssm/core/test_folder.h"
#include "ssm/load/random_model.h"
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/runtime/generate.h"
#include "ssm/runtime/score.h"

namespace ssm {
namespace {

namespace fs = std::filesystem;

const fs::path kRoot = SSM_SOURCE_DIR;
constexpr const char* kFamilies[] = {"mamba-default", "mamba2-default", "falcon-default",
                                     "neox-default",  "hybrid-attn",    "hybrid-mlp"};

LoadedModel golden_model(const std::string& name, Device device, DType compute = DType::f32,
                         DType state = DType::f32) {
  return load_model(kRoot / "tests/goldens/models" / name,
                    {.compute = compute, .device = device, .state = state});
}
LoadedModel bundled_model(Device device, DType compute = DType::f32) {
  return load_model(kRoot / "models/tale-10m", {.compute = compute, .device = device});
}

std::vector<int32_t> random_ids(const LoadedModel& model, int64_t n, Rng& rng) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i) ids.push_back(static_cast<int32_t>(rng.below(model.model->vocab_size())));
  return ids;
}

// Logits [T, V] f32 of one sequence, read in these pieces.
Tensor logits_of(const LoadedModel& model, std::span<const int32_t> ids, std::span<const int64_t> pieces) {
  const StatePool pool(*model.model, 1, model.state);
  const auto total = static_cast<int64_t>(ids.size());
  Tensor all = Tensor::empty({total, model.model->vocab_size()});
  int64_t at = 0;
  for (const int64_t n : pieces) {
    const auto piece = ids.subspan(static_cast<size_t>(at), static_cast<size_t>(n));
    const Tensor on_device = Tensor::from_values<int32_t>(piece, {n}).to(model.device);
    const Tensor hidden = model.model->hidden(on_device, SequenceBatch::single(n), pool.state());
    const Tensor logits = model.model->logits(hidden).to(kCpu);
    std::copy_n(logits.raw(), logits.bytes(), all.slice(0, at, at + n).raw());
    at += n;
  }
  return all;
}
Tensor logits_of(const LoadedModel& model, std::span<const int32_t> ids) {
  const auto n = static_cast<int64_t>(ids.size());
  return logits_of(model, ids, std::span(&n, 1));
}

std::vector<Generated> generate(const LoadedModel& model, const std::vector<std::vector<int32_t>>& prompts,
                                const GenerateOptions& options) {
  Generator generator(model, static_cast<int64_t>(prompts.size()));
  for (const auto& prompt : prompts) generator.add(prompt);
  return generator.run(options);
}

GenerateOptions greedy(int64_t tokens) {
  return {.sampling = {.temperature = 0}, .max_new_tokens = tokens, .stop = {}, .ignore_eos = true};
}

// |a - b| / |b|, Euclidean.
double norm_error(const Tensor& a, const std::vector<double>& b) {
  double difference = 0, square = 0;
  const std::vector<double> values = test::to_doubles(a);
  for (size_t i = 0; i < b.size(); ++i) {
    difference += (values[i] - b[i]) * (values[i] - b[i]);
    square += b[i] * b[i];
  }
  return std::sqrt(difference / square);
}

// Random weights make a model that amplifies rounding; the bundled one is trained.
TEST(ModelCuda, LogitsAreTheCpusWithinTheBounds) {
  SSM_NEED_CUDA();
  Rng rng(1);
  for (const char* name : {"mamba-default", "mamba2-default", "falcon-default", "neox-default", "hybrid-attn",
                           "hybrid-mlp", "tale-10m"}) {
    const auto open = [&](Device device, DType compute) {
      return name == std::string_view("tale-10m") ? bundled_model(device, compute)
                                                  : golden_model(name, device, compute);
    };
    const LoadedModel cpu = open(kCpu, DType::f32);
    const auto ids = random_ids(cpu, 700, rng);
    const std::vector<double> expected = test::to_doubles(logits_of(cpu, ids));
    EXPECT_LT(test::relative_error(logits_of(open(kCuda, DType::f32), ids), expected), 1e-4) << name;
    for (const auto& [dtype, bound] : {std::pair(DType::f16, 1e-2), std::pair(DType::bf16, 8e-2)}) {
      const double card = norm_error(logits_of(open(kCuda, dtype), ids), expected);
      const double host = norm_error(logits_of(open(kCpu, dtype), ids), expected);
      std::printf("  %s %s: off by %.2e, a CPU's products in that type by %.2e\n", name,
                  std::string(name_of(dtype)).c_str(), card, host);
      EXPECT_LT(card, bound) << name << " " << name_of(dtype);
    }
  }
}

// What the 16-bit storage of a state costs: the mean divergence of the next token's distribution when a text
// of the model's own is read token by token, so that the state is rounded as often as it can be.
TEST(ModelCuda, NarrowStatesCostLittle) {
  SSM_NEED_CUDA();
  const LoadedModel model = bundled_model(kCuda);
  GenerateOptions options = greedy(1500);
  options.sampling = {.temperature = 1, .seed = 1};
  std::vector<int32_t> ids = generate(model, {{1}}, options)[0].ids;
  const std::vector<int64_t> ones(ids.size(), 1);
  const auto logits_with = [&](DType state) {
    const LoadedModel narrow =
        load_model(kRoot / "models/tale-10m", {.compute = DType::f32, .device = kCuda, .state = state});
    return logits_of(narrow, ids, ones);
  };
  const Tensor wide = logits_with(DType::f32);
  for (const auto& [state, bound] : {std::pair(DType::f16, 1e-4), std::pair(DType::bf16, 5e-3)}) {
    const Tensor narrow = logits_with(state);
    double sum = 0;
    for (int64_t t = 0; t < wide.size(0); ++t)
      sum += test::divergence(wide.select(0, t), narrow.select(0, t));
    const double mean = sum / static_cast<double>(wide.size(0));
    std::printf("  states in %s: mean KL divergence %.2e nats\n", std::string(name_of(state)).c_str(), mean);
    EXPECT_LT(mean, bound) << name_of(state);
  }
}

TEST(ModelCuda, ReadInAnyPieces) {
  SSM_NEED_CUDA();
  Rng rng(2);
  for (const char* name : kFamilies) {
    const LoadedModel model = golden_model(name, kCuda);
    const auto ids = random_ids(model, 900, rng);
    const std::vector<double> whole = test::to_doubles(logits_of(model, ids));
    for (int trial = 0; trial < 6; ++trial) {
      std::vector<int64_t> pieces;
      for (int64_t left = 900; left > 0; left -= pieces.back())
        pieces.push_back(std::min(left, 1 + rng.below(trial % 2 ? 5 : 300)));
      // Attention adds up a text's tokens in an order that depends on the piece.
      EXPECT_LT(test::relative_error(logits_of(model, ids, pieces), whole),
                model.model->has_attention() ? 3e-4 : 1e-4)
          << name;
    }
  }
}

// B texts of `tokens` tokens, read token by token on the card and each as a whole on the CPU, end in the same
// logits.
void expect_steps(const LoadedModel& cpu, const LoadedModel& card, int64_t B, int64_t tokens, Rng& rng,
                  const std::string& name, double bound = 5e-2) {
  const StatePool pool(*card.model, B);
  std::vector<std::vector<int32_t>> texts;
  std::vector<int32_t> slots;
  for (int64_t b = 0; b < B; ++b) {
    texts.push_back(random_ids(card, tokens, rng));
    slots.push_back(static_cast<int32_t>(B - 1 - b));
  }
  Tensor logits;
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<int32_t> ids;
    for (const auto& text : texts) ids.push_back(text[static_cast<size_t>(t)]);
    const Tensor on_card = Tensor::from_values<int32_t>(ids, {B}).to(kCuda);
    logits = card.model->logits(card.model->hidden(on_card, SequenceBatch::steps(slots), pool.state()));
  }
  const Tensor got = logits.to(kCpu);
  for (int64_t b = 0; b < B; ++b) {
    const Tensor expected = logits_of(cpu, texts[static_cast<size_t>(b)]).slice(0, tokens - 1, tokens);
    EXPECT_LT(norm_error(got.slice(0, b, b + 1), test::to_doubles(expected)), bound)
        << name << " " << b << " of " << B;
  }
}

// Texts read token by token, one at a time, a few and many together: each batch has kernels of its own.
TEST(ModelCuda, StepsOfAnyBatchIn16Bits) {
  SSM_NEED_CUDA();
  Rng rng(5);
  for (const char* name : {"mamba-default", "mamba2-default", "falcon-default", "neox-default", "hybrid-attn",
                           "hybrid-mlp", "tale-10m"}) {
    const bool bundled = name == std::string_view("tale-10m");
    const LoadedModel cpu = bundled ? bundled_model(kCpu) : golden_model(name, kCpu);
    const LoadedModel card =
        bundled ? bundled_model(kCuda, DType::f16) : golden_model(name, kCuda, DType::f16);
    for (const int64_t B : {1, 2, 5, 30, 100}) expect_steps(cpu, card, B, 7, rng, name);
    const LoadedModel coarse =
        bundled ? bundled_model(kCuda, DType::bf16) : golden_model(name, kCuda, DType::bf16);
    for (const int64_t B : {3, 30, 100}) expect_steps(cpu, coarse, B, 7, rng, name, 8 * 5e-2);
  }
}

TEST(ModelCuda, GreedyTextIsTransformers) {
  SSM_NEED_CUDA();
  std::ifstream in(kRoot / "tests/goldens/tale-10m.json");
  const nlohmann::json golden = nlohmann::json::parse(in);
  const LoadedModel model = bundled_model(kCuda);
  const auto ids = golden.at("greedy").at("ids").get<std::vector<int32_t>>();
  const auto prompt = golden.at("greedy").at("prompt_ids").get<std::vector<int32_t>>();
  EXPECT_EQ(generate(model, {prompt}, greedy(std::ssize(ids)))[0].ids, ids);
  const nlohmann::json& scored = golden.at("score");
  score(model, scored.at("ids").get<std::vector<int32_t>>(), [&](const TokenScore& s) {
    const auto i = static_cast<size_t>(s.position);
    EXPECT_EQ(s.argmax, scored.at("argmax")[i].get<int32_t>());
    if (i > 0) {
      EXPECT_NEAR(s.logprob, scored.at("logprobs")[i].get<double>(), 2e-4) << i;
    }
  });
}

TEST(ModelCuda, ABatchOfUnequalPromptsEqualsTheCpus) {
  SSM_NEED_CUDA();
  for (const char* name : kFamilies) {
    const LoadedModel cpu = golden_model(name, kCpu), card = golden_model(name, kCuda);
    const std::vector<std::vector<int32_t>> prompts{
        {5}, {1, 2, 3, 4, 5, 6, 7}, std::vector<int32_t>(700, 9), {8, 8}, {3}};
    for (const float temperature : {0.0f, 1.0f}) {
      GenerateOptions options = greedy(24);
      options.sampling = {.temperature = temperature, .top_k = 20, .repetition_penalty = 1.1f, .seed = 5};
      const auto expected = generate(cpu, prompts, options), got = generate(card, prompts, options);
      for (size_t i = 0; i < prompts.size(); ++i) EXPECT_EQ(got[i].ids, expected[i].ids) << name << " " << i;
    }
  }
}

// A batch that shrinks as sequences end takes other graphs, and other slots in them.
TEST(ModelCuda, SequencesThatEndEarlyLeaveTheOthersAlone) {
  SSM_NEED_CUDA();
  const LoadedModel model = bundled_model(kCuda);
  std::vector<std::vector<int32_t>> prompts;
  for (int32_t i = 0; i < 6; ++i) prompts.push_back({50 + i, 60, 70 + i});
  Generator generator(model, 6);
  for (const auto& prompt : prompts) generator.add(prompt);
  std::vector<int> counts(6, 0);
  const auto results = generator.run(greedy(40), [&](size_t index, int32_t, std::string_view) {
    return ++counts[index] < 5 * (static_cast<int>(index) + 1);
  });
  for (size_t i = 0; i < 6; ++i) {
    const auto alone = generate(model, {prompts[i]}, greedy(std::ssize(results[i].ids)));
    EXPECT_EQ(results[i].ids, alone[0].ids) << i;
  }
}

TEST(ModelCuda, AStateGoesOnOnTheOtherDevice) {
  SSM_NEED_CUDA();
  const test::TempFolder folder;
  for (const char* name : kFamilies) {
    const LoadedModel cpu = golden_model(name, kCpu), card = golden_model(name, kCuda);
    const std::vector<int32_t> prompt{4, 9, 2, 7, 7, 1};
    const std::vector<int32_t> whole = generate(cpu, {prompt}, greedy(30))[0].ids;
    for (const bool to_card : {false, true}) {
      const fs::path file = folder.path() / fmt::format("{}-{}.state", name, to_card);
      Generator first(to_card ? cpu : card, 1);
      first.add(prompt);
      std::vector<int32_t> ids = first.run(greedy(13))[0].ids;
      first.save(0, file);
      Generator second(to_card ? card : cpu, 1);
      second.add({}, file);
      const std::vector<int32_t> rest = second.run(greedy(17))[0].ids;
      ids.insert(ids.end(), rest.begin(), rest.end());
      EXPECT_EQ(ids, whole) << name << (to_card ? " to the card" : " from the card");
    }
  }
}

TEST(ModelCuda, ForkedAndNarrowStates) {
  SSM_NEED_CUDA();
  Rng rng(3);
  for (const char* name : kFamilies) {
    for (const DType state : {DType::f32, DType::bf16, DType::f16}) {
      const LoadedModel model = golden_model(name, kCuda, DType::f32, state);
      StatePool pool(*model.model, 3, state);
      SequenceRunner runner(*model.model, pool);
      const int32_t slot = pool.acquire();
      const auto ids = random_ids(model, 80, rng);
      const SequenceRunner::Input input{slot, ids};
      const Tensor first = runner.logits(runner.hidden(std::span(&input, 1)).slice(0, 79, 80)).to(kCpu);
      const int32_t copy = pool.fork(slot);
      const std::vector<int32_t> next{1};
      const SequenceRunner::Input both[] = {{slot, next}, {copy, next}};
      const Tensor logits = runner.logits(runner.hidden(both)).to(kCpu);
      EXPECT_TRUE(test::same_bits(logits.slice(0, 0, 1), logits.slice(0, 1, 2))) << name;
      const double bound = state == DType::f32 ? 1e-4 : state == DType::f16 ? 1e-2 : 1e-1;
      const LoadedModel cpu = golden_model(name, kCpu);
      const Tensor expected = logits_of(cpu, ids).slice(0, 79, 80);
      EXPECT_LT(test::relative_error(first, test::to_doubles(expected)), bound) << name << name_of(state);
    }
  }
}

// Packed matrices, whose codes a card multiplies as they are: against the CPU, which rounds activations to 16
// bits for it (docs/numerics.md). Random weights amplify that, so the bundled model.
LoadedModel packed_model(Device device, DType compute, std::string_view type, int64_t group) {
  LoadOptions options{.compute = compute, .device = device};
  options.quantization = Quantization{.format = *quant_format(type, group)};
  return load_model(kRoot / "models/tale-10m", options);
}
constexpr std::pair<const char*, int64_t> kPacked[] = {
    {"int4", 128}, {"int4", 64}, {"int4", 32}, {"int8", 128}, {"q8_0", 0}, {"q6_k", 0},
    {"q5_k", 0},   {"q4_k", 0},  {"q5_1", 0},  {"q4_1", 0},   {"q4_0", 0}};

TEST(ModelCuda, PackedLogitsAreTheCpusWithinTheBounds) {
  SSM_NEED_CUDA();
  Rng rng(7);
  for (const auto& [type, group] : kPacked) {
    const LoadedModel cpu = packed_model(kCpu, DType::f32, type, group);
    const auto ids = random_ids(cpu, 300, rng);
    const std::vector<double> expected = test::to_doubles(logits_of(cpu, ids));
    for (const auto& [dtype, bound] :
         {std::pair(DType::f32, 1e-3), std::pair(DType::f16, 1e-2), std::pair(DType::bf16, 8e-2)}) {
      const double error = norm_error(logits_of(packed_model(kCuda, dtype, type, group), ids), expected);
      std::printf("  %s %s: off by %.2e\n", cpu.stored_name().c_str(), std::string(name_of(dtype)).c_str(),
                  error);
      EXPECT_LT(error, bound) << cpu.stored_name() << " " << name_of(dtype);
    }
  }
}

// Steps of any batch, fused and not, against texts read as a whole.
TEST(ModelCuda, PackedStepsOfAnyBatch) {
  SSM_NEED_CUDA();
  Rng rng(8);
  for (const auto& [type, group] : kPacked) {
    const LoadedModel cpu = packed_model(kCpu, DType::f32, type, group);
    const LoadedModel card = packed_model(kCuda, DType::f16, type, group);
    for (const int64_t B : {1, 5, 30, 100}) expect_steps(cpu, card, B, 5, rng, cpu.stored_name());
  }
}

// Captured steps choose what the same logits, computed by steps that are not captured, give.
TEST(ModelCuda, PackedGreedyTextIsTheBestOfItsLogits) {
  SSM_NEED_CUDA();
  for (const char* name : {"mamba-default", "mamba2-default", "falcon-default"}) {
    for (const char* type : {"int4", "q8_0"}) {
      LoadOptions options{.compute = DType::f32, .device = kCuda};
      options.quantization = Quantization{.format = *quant_format(type, 32)};
      const LoadedModel model = load_model(kRoot / "tests/goldens/models" / name, options);
      const std::vector<std::vector<int32_t>> prompts{{5}, {1, 2, 3, 4, 5, 6, 7}, {8, 8}};
      const auto results = generate(model, prompts, greedy(20));
      for (size_t i = 0; i < prompts.size(); ++i) {
        std::vector<int32_t> ids = prompts[i];
        ids.insert(ids.end(), results[i].ids.begin(), results[i].ids.end());
        const std::vector<int64_t> ones(ids.size(), 1);
        const Tensor logits = logits_of(model, ids, ones);
        for (size_t t = prompts[i].size(); t < ids.size(); ++t) {
          const auto row = logits.select(0, static_cast<int64_t>(t) - 1).values<float>();
          const auto usable = row.first(static_cast<size_t>(model.usable_vocab()));
          const float best = *std::max_element(usable.begin(), usable.end());
          EXPECT_GT(row[static_cast<size_t>(ids[t])], best - 1e-3f * (1 + std::abs(best)))
              << name << " " << type;
        }
      }
    }
  }
}

TEST(ModelCuda, AMillionTokensInConstantMemory) {
  SSM_NEED_CUDA();
  for (const char* name : {"mamba-default", "mamba2-default"}) {
    const LoadedModel model = golden_model(name, kCuda);
    Rng rng(4);
    const std::vector<int32_t> ids = random_ids(model, 1'000'000, rng);
    size_t early = 0;
    int64_t last = -1;
    double nll = 0;
    score(model, ids, [&](const TokenScore& s) {
      if (s.position == 40'000) early = memory_of(kCuda).free;
      last = s.position;
      nll -= s.position > 0 ? s.logprob : 0.0;
    });
    EXPECT_EQ(last, 999'999);
    EXPECT_TRUE(std::isfinite(nll));
    EXPECT_GE(memory_of(kCuda).free + (size_t{8} << 20), early) << name << ": memory grew with the text";
  }
}

TEST(ModelCuda, OutOfMemoryIsOneLineAndPasses) {
  SSM_NEED_CUDA();
  try {
    Tensor::empty({int64_t{1} << 44}, DType::u8, kCuda);
    ADD_FAILURE() << "16 TiB were allocated";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("out of memory: the card has"), std::string::npos) << e.what();
  }
  const LoadedModel model = golden_model("mamba-default", kCuda);
  EXPECT_EQ(generate(model, {{1, 2, 3}}, greedy(3))[0].ids.size(), 3u);
}

}  // namespace
}  // namespace ssm
