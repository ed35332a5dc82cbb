#include "ssm/runtime/prefix_cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>

#include "ssm/ops/test_util.h"
#include "ssm/runtime/generate.h"
#include "ssm/runtime/test_requests.h"

namespace ssm {
namespace {

using test::golden_model;
using test::Heard;
using test::random_ids;
using test::request_of;
using test::run;
using test::submit;

using Ids = std::vector<int32_t>;

PrefixCache::Entry entry_of(int32_t number, size_t bytes = 64, bool with_hidden = true) {
  PrefixCache::Entry entry;
  entry.state = Tensor::zeros({static_cast<int64_t>(bytes)}, DType::u8);
  std::memcpy(entry.state.raw(), &number, sizeof(number));
  if (with_hidden) entry.hidden = Tensor::zeros({1, 1});
  return entry;
}
int32_t number_of(const PrefixCache::Entry& entry) {
  int32_t number;
  std::memcpy(&number, entry.state.raw(), sizeof(number));
  return number;
}

// Texts over two letters, so that every kind of split and join occurs.
TEST(PrefixCache, FindsWhatAMapWouldFind) {
  Rng rng(3);
  PrefixCache cache(1 << 24);
  std::map<Ids, std::pair<int32_t, bool>> expected;
  for (int32_t round = 0; round < 4000; ++round) {
    Ids ids;
    for (int64_t i = rng.below(12); i >= 0; --i) ids.push_back(static_cast<int32_t>(rng.below(2)));
    if (rng.below(3) == 0) {
      const bool with_hidden = rng.below(2) == 0;
      cache.insert(ids, entry_of(round, 64, with_hidden));
      expected[ids] = {round, with_hidden};
      continue;
    }
    EXPECT_EQ(cache.contains(ids), expected.contains(ids));
    const PrefixCache::Match match = cache.find(ids);
    Ids prefix = ids;
    while (!prefix.empty()) {
      const auto it = expected.find(prefix);
      if (it != expected.end() && (prefix.size() < ids.size() || it->second.second)) break;
      prefix.pop_back();
    }
    ASSERT_EQ(match.length, std::ssize(prefix));
    if (!prefix.empty()) {
      EXPECT_EQ(number_of(match.entry), expected[prefix].first);
    }
    int64_t shared = 0;
    for (const auto& [text, value] : expected) {
      const auto end = std::mismatch(ids.begin(), ids.end(), text.begin(), text.end()).first;
      shared = std::max<int64_t>(shared, end - ids.begin());
    }
    EXPECT_EQ(match.shared, shared);
  }
  EXPECT_EQ(cache.size(), std::ssize(expected));
  cache.clear();
  EXPECT_EQ(cache.size(), 0);
  EXPECT_EQ(cache.bytes(), 0u);
}

TEST(PrefixCache, StaysWithinItsBudgetAndForgetsTheOldestFirst) {
  Rng rng(4);
  PrefixCache cache(20'000);
  for (int32_t round = 0; round < 3000; ++round) {
    Ids ids;
    for (int64_t i = rng.below(20); i >= 0; --i) ids.push_back(static_cast<int32_t>(rng.below(3)));
    cache.insert(ids, entry_of(round, 1000));
    ASSERT_LE(cache.bytes(), cache.budget());
    ASSERT_TRUE(cache.contains(ids));
  }
  EXPECT_GE(cache.size(), 10);
  cache.clear();
  EXPECT_EQ(cache.bytes(), 0u);
  const Ids kept{1, 2, 3};
  cache.insert(kept, entry_of(1, 1000));
  for (int32_t i = 10; i < 100; ++i) {
    cache.insert(Ids{i}, entry_of(i, 1000));
    EXPECT_EQ(cache.find(Ids{1, 2, 3, 4}).length, 3);  // is used, and stays
  }
  EXPECT_FALSE(cache.contains(Ids{10}));
  cache.insert(Ids{7}, entry_of(7, 30'000));  // alone too large
  EXPECT_FALSE(cache.contains(Ids{7}));
  EXPECT_TRUE(cache.contains(kept));
}

// Texts that grow out of each other, as conversations and shared instructions do.
std::vector<Ids> related_prompts(const LoadedModel& model, Rng& rng, bool any_length) {
  std::vector<Ids> prompts{random_ids(model, 700, rng)};
  for (int i = 0; i < 25; ++i) {
    Ids ids = prompts[static_cast<size_t>(rng.below(std::ssize(prompts)))];
    ids.resize(ids.size() - static_cast<size_t>(rng.below(300)));
    const Ids more = random_ids(model, any_length ? rng.below(400) : 1000 - std::ssize(ids), rng);
    ids.insert(ids.end(), more.begin(), more.end());
    prompts.push_back(ids);
    if (rng.below(4) == 0) prompts.push_back(ids);
  }
  return prompts;
}

void expect_hits_change_nothing(const char* name, bool any_length, float bound, DType dtype = DType::f32) {
  const LoadedModel model = golden_model(name);
  Rng rng(9);
  Scheduler with(model, {.slots = 2, .cache_bytes = size_t{1} << 26, .cache_dtype = dtype});
  Scheduler without(model, {.slots = 2});
  int64_t cached = 0;
  for (const Ids& prompt : related_prompts(model, rng, any_length)) {
    // One new token where a bound holds: later ones could differ where two scores are that near.
    Request request = request_of(prompt, bound == 0 ? 8 : 1);
    request.top_logprobs = 0;
    const auto hit = submit(with, request), plain = submit(without, request);
    run(with);
    run(without);
    EXPECT_EQ(hit->ids, plain->ids) << name;
    ASSERT_EQ(hit->logprobs[0].size(), plain->logprobs[0].size());
    for (size_t i = 0; i < hit->logprobs[0].size(); ++i) {
      EXPECT_LE(std::abs(hit->logprobs[0][i] - plain->logprobs[0][i]), bound)
          << name << ", " << hit->cached << " of " << prompt.size() << " known";
    }
    EXPECT_EQ(plain->cached, 0);
    cached += hit->cached;
  }
  EXPECT_GT(cached, 4000) << name;
  EXPECT_EQ(with.stats().cached_tokens, cached);
}

TEST(PrefixCache, AHitGivesWhatNoHitGives) {
  expect_hits_change_nothing("mamba-default", true, 0);
  expect_hits_change_nothing("falcon-default", true, 0);
  // No prompt extends a whole other one: all cuts are at multiples of the chunk.
  expect_hits_change_nothing("mamba2-default", false, 0);
  expect_hits_change_nothing("mamba2-groups2", false, 0);
  expect_hits_change_nothing("mamba2-default", true, 1e-4f);
  expect_hits_change_nothing("mamba-default", true, 0.01f, DType::f16);
}

// What states of 16 bits in the cache cost: the mean divergence of the next 200 tokens' distributions after a
// text whose state was rounded once.
TEST(PrefixCache, NarrowStatesCostLittle) {
  const LoadedModel model = load_model(std::filesystem::path(SSM_SOURCE_DIR) / "models/tale-10m",
                                       {.compute = DType::f32, .tokenizer = {}});
  GenerateOptions options;
  options.sampling = {.temperature = 1, .seed = 1};
  options.max_new_tokens = 1000;
  options.ignore_eos = true;
  Generator generator(model, 1);
  generator.add(Ids{1});
  const Ids text = generator.run(options)[0].ids, before(text.begin(), text.begin() + 800);
  StatePool pool(*model.model, 2);
  SequenceRunner runner(*model.model, pool);
  const int32_t wide = pool.acquire(), narrow = pool.acquire();
  const auto after = std::span(text).subspan(before.size());
  for (const auto& [dtype, bound] : {std::pair(DType::f16, 1e-7), std::pair(DType::bf16, 5e-6)}) {
    pool.reset(wide);
    runner.read_all({.slot = wide, .ids = before}, [](int64_t, const Tensor&) {});
    pool.copy_in(narrow, pool.copy_out(wide, dtype), dtype);
    const Tensor p = runner.logits(runner.hidden(std::vector<SequenceRunner::Input>{{wide, after}}));
    const Tensor q = runner.logits(runner.hidden(std::vector<SequenceRunner::Input>{{narrow, after}}));
    double sum = 0;
    for (int64_t t = 0; t < p.size(0); ++t) sum += test::divergence(p.select(0, t), q.select(0, t));
    const double mean = sum / static_cast<double>(p.size(0));
    std::printf("  a state in %s: mean KL divergence %.2e nats\n", std::string(name_of(dtype)).c_str(), mean);
    EXPECT_LT(mean, bound) << name_of(dtype);
    EXPECT_GT(mean, 0);
    EXPECT_EQ(pool.bytes_per_slot(dtype), pool.bytes_per_slot() / 2);
  }
}

TEST(PrefixCache, AConversationsNextTurnReadsOnlyWhatIsNew) {
  const LoadedModel model = golden_model("mamba-default");
  Scheduler scheduler(model, {.slots = 3, .cache_bytes = size_t{1} << 26});
  Rng rng(2);
  Ids text = random_ids(model, 100, rng);
  for (int turn = 0; turn < 4; ++turn) {
    const auto reply = submit(scheduler, request_of(text, 20));
    run(scheduler);
    // The reply's last token was not read.
    EXPECT_EQ(reply->cached, turn == 0 ? 0 : std::ssize(text) - 11);
    text.insert(text.end(), reply->ids[0].begin(), reply->ids[0].end());
    const Ids more = random_ids(model, 10, rng);
    text.insert(text.end(), more.begin(), more.end());
  }
}

TEST(PrefixCache, ARepeatedPromptIsNotReadAtAll) {
  const LoadedModel model = golden_model("mamba2-default");
  Scheduler scheduler(model, {.slots = 3, .cache_bytes = size_t{1} << 26});
  Rng rng(2);
  Request request = request_of(random_ids(model, 77, rng), 10, 1.0f, 5);
  request.n = 2;
  const auto first = submit(scheduler, request);
  run(scheduler);
  const int64_t steps = scheduler.stats().steps;
  const auto again = submit(scheduler, request);
  run(scheduler);
  EXPECT_EQ(again->cached, 77);
  EXPECT_EQ(again->ids, first->ids);
  EXPECT_EQ(scheduler.stats().steps - steps, 10);
}

TEST(PrefixCache, TheEndOfASharedBeginningIsFound) {
  const LoadedModel model = golden_model("mamba2-default");
  Scheduler scheduler(model, {.slots = 3, .cache_bytes = size_t{1} << 26});
  Rng rng(2);
  const Ids shared = random_ids(model, 200, rng);
  std::vector<int64_t> cached;
  for (int i = 0; i < 3; ++i) {
    Ids prompt = shared;
    const Ids own = random_ids(model, 30, rng);
    prompt.insert(prompt.end(), own.begin(), own.end());
    const auto heard = submit(scheduler, request_of(prompt, 1));
    run(scheduler);
    cached.push_back(heard->cached);
  }
  EXPECT_EQ(cached, (std::vector<int64_t>{0, 0, 192}));  // 192: the last whole chunk of 200
  Request marked = request_of(random_ids(model, 200, rng), 1);
  marked.marks = {150};
  submit(scheduler, marked);
  run(scheduler);
  marked.prompt.resize(140);
  const auto heard = submit(scheduler, marked);
  run(scheduler);
  EXPECT_EQ(heard->cached, 128);
}

}  // namespace
}  // namespace ssm
