#include <benchmark/benchmark.h>

#include <array>
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

void BM_Encode(benchmark::State& state) {
  const auto tokenizer = open_tokenizer(SSM_SOURCE_DIR "/models/tale-8m");
  const std::string text = make_text(static_cast<size_t>(state.range(0)));
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer->encode(text));
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
}
BENCHMARK(BM_Encode)->Arg(100)->Arg(10000)->Arg(1000000);

void BM_EncodeOneLongWord(benchmark::State& state) {
  const auto tokenizer = open_tokenizer(SSM_SOURCE_DIR "/models/tale-8m");
  const std::string text(static_cast<size_t>(state.range(0)), 'a');
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer->encode(text));
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
}
BENCHMARK(BM_EncodeOneLongWord)->Arg(1000)->Arg(1000000);

void BM_Decode(benchmark::State& state) {
  const auto tokenizer = open_tokenizer(SSM_SOURCE_DIR "/models/tale-8m");
  const auto ids = tokenizer->encode(make_text(1000000));
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer->decode(ids));
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations() * ids.size()));
}
BENCHMARK(BM_Decode);

void BM_Load(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(open_tokenizer(SSM_SOURCE_DIR "/models/tale-8m"));
}
BENCHMARK(BM_Load);

}  // namespace
}  // namespace ssm::text
