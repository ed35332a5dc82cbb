#include <benchmark/benchmark.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <random>

#include "ssm/text/tokenizer.h"

namespace ssm::text {
namespace {

// English-like: words by a steep distribution, some punctuation and lines.
std::string make_text(size_t bytes) {
  constexpr std::array kSyllables = {"the", "an", "ing", "er", "re", "to", "con", "al", "ver", "ent",
                                     "is",  "mo", "st",  "ly", "qu", "en", "ra",  "be", "fo",  "ti"};
  std::mt19937 random(1);
  std::geometric_distribution<size_t> word(0.01);
  std::string text;
  while (text.size() < bytes) {
    std::mt19937 spelling(static_cast<uint32_t>(word(random)));
    const auto pick = [&](size_t n) { return static_cast<size_t>(spelling() % n); };
    for (size_t n = pick(3) + 1; n > 0; --n) text += kSyllables[pick(kSyllables.size())];
    const auto end = random() % 20;
    text += end == 0 ? ". " : end == 1 ? ", " : end == 2 ? ".\n" : " ";
  }
  return text;
}

// The bundled tokenizer, and real ones where they lie beside the repository.
struct Choice {
  const char* name;
  const char* path;
};
constexpr std::array kChoices = {
    Choice{"tale-10m", SSM_SOURCE_DIR "/models/tale-10m"},
    Choice{"gpt-neox-20b", SSM_SOURCE_DIR "/../shared/tokenizers/gpt-neox-20b/tokenizer.json"},
    Choice{"codestral", SSM_SOURCE_DIR "/../shared/tokenizers/codestral-mamba/tokenizer.model.v3"}};

// nullptr: not here; the benchmark says so.
std::unique_ptr<Tokenizer> open_choice(benchmark::State& state) {
  const Choice& choice = kChoices[static_cast<size_t>(state.range(0))];
  state.SetLabel(choice.name);
  if (std::filesystem::exists(choice.path)) return open_tokenizer(choice.path);
  state.SkipWithError("not on this machine");
  return nullptr;
}

// Real text, where it lies beside the repository.
std::string text_of(int64_t bytes) {
  std::ifstream file(SSM_SOURCE_DIR "/../shared/corpus/valid.txt", std::ios::binary);
  std::string text(static_cast<size_t>(bytes), ' ');
  if (file.read(text.data(), bytes)) return text;
  return make_text(static_cast<size_t>(bytes));
}

void BM_Encode(benchmark::State& state) {
  const auto tokenizer = open_choice(state);
  if (!tokenizer) return;
  const std::string text = text_of(state.range(1));
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer->encode(text));
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
}
BENCHMARK(BM_Encode)->ArgsProduct({{0, 1, 2}, {100, 10000, 1000000}});

void BM_EncodeOneLongWord(benchmark::State& state) {
  const auto tokenizer = open_choice(state);
  if (!tokenizer) return;
  const std::string text(static_cast<size_t>(state.range(1)), 'a');
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer->encode(text));
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
}
BENCHMARK(BM_EncodeOneLongWord)->ArgsProduct({{0, 1, 2}, {1000, 1000000}});

void BM_Decode(benchmark::State& state) {
  const auto tokenizer = open_choice(state);
  if (!tokenizer) return;
  const auto ids = tokenizer->encode(text_of(1000000));
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer->decode(ids));
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations() * ids.size()));
}
BENCHMARK(BM_Decode)->DenseRange(0, 2);

void BM_Load(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(open_choice(state));
}
BENCHMARK(BM_Load)->DenseRange(0, 2);

}  // namespace
}  // namespace ssm::text
