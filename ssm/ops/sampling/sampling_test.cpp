#include "ssm/ops/sampling/sampling.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "ssm/ops/sampling/sampling_reference.h"
#include "ssm/ops/simd/test_targets.h"
#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

int32_t sample_one(const std::vector<float>& row, const SamplingParams& params, int64_t position = 0,
                   int64_t vocab = 0) {
  const Tensor logits = Tensor::from_values<float>(row, {1, std::ssize(row)});
  const Tensor y =
      sample(logits, vocab ? vocab : std::ssize(row), std::span(&params, 1), {}, {}, std::span(&position, 1));
  return y.values<int32_t>()[0];
}

SamplingParams random_params(Rng& rng, int64_t V) {
  SamplingParams p;
  p.temperature = rng.below(8) ? 0.2f + 2 * rng.uniform() : 0.0f;
  if (rng.below(2)) p.top_k = static_cast<int32_t>(rng.below(rng.below(2) ? 8 : V + 3));
  if (rng.below(2)) p.top_p = rng.uniform();
  if (rng.below(3) == 0) p.min_p = 0.5f * rng.uniform() * rng.uniform();
  if (rng.below(2)) p.repetition_penalty = 0.5f + 2 * rng.uniform();
  p.seed = static_cast<uint64_t>(rng.below(1 << 30)) << 20;
  return p;
}

// Ties, -inf, NaN and, at times, one strong token.
void fill_row(std::span<float> row, Rng& rng) {
  const float scale = rng.below(2) ? 1.0f : 4.0f;
  const bool ties = rng.below(4) == 0;
  for (float& x : row) {
    x = scale * rng.normal();
    if (ties) x = std::round(x);
    if (rng.below(20) == 0) x = rng.below(2) ? -INFINITY : kNan;
  }
  row[static_cast<size_t>(rng.below(std::ssize(row)))] = rng.below(2) ? 9.0f : 0.5f;
}

struct Case {
  int64_t B, V, vocab;
  Tensor logits, seen;
  std::vector<SamplingParams> params;
  std::vector<int32_t> slots;
  std::vector<int64_t> positions;

  explicit Case(Rng& rng) {
    B = 1 + rng.below(6);
    V = 1 + rng.below(rng.below(6) ? 80 : 5000);
    vocab = rng.below(2) ? V : 1 + rng.below(V);
    const int64_t before = rng.below(2) ? rng.below(5) : 0;
    logits = Tensor::empty({B, V + before}).slice(1, before, before + V);
    seen = Tensor::zeros({B + 2, V}, DType::u8);
    for (uint8_t& mark : seen.values<uint8_t>()) mark = rng.below(4) == 0;
    for (int64_t b = 0; b < B; ++b) {
      std::span row(logits.data<float>() + b * logits.stride(0), static_cast<size_t>(V));
      fill_row(row, rng);
      row[static_cast<size_t>(rng.below(vocab))] = rng.normal();
      params.push_back(random_params(rng, V));
      slots.push_back(static_cast<int32_t>(B + 1 - b));
      positions.push_back(rng.below(100000));
    }
  }
  std::vector<double> row(int64_t b) const {
    return test::to_doubles(logits.select(0, b).slice(0, 0, vocab));
  }
  std::vector<uint8_t> marks(int64_t b) const {
    const Tensor row = seen.select(0, slots[static_cast<size_t>(b)]).clone();
    return {row.data<uint8_t>(), row.data<uint8_t>() + vocab};
  }
};

TEST(Sampling, EveryTokenIsWhatTheReferenceDraws) {
  test::for_each_target([] {
    Rng rng(31);
    int close = 0, drawn = 0;
    for (int trial = 0; trial < 500; ++trial) {
      const Case c(rng);
      const Tensor seen = c.seen.clone(), before = c.logits.clone();
      const Tensor y = sample(c.logits, c.vocab, c.params, seen, c.slots, c.positions);
      EXPECT_EQ(0, std::memcmp(c.logits.clone().raw(), before.raw(), before.bytes()));  // NaN and all
      Tensor expected = c.seen.clone();
      for (int64_t b = 0; b < c.B; ++b) {
        const auto i = static_cast<size_t>(b);
        const SamplingParams& p = c.params[i];
        const auto d = reference::distribution(c.row(b), c.marks(b), p);
        const double u = reference::draw_uniform(p.seed, c.positions[i]);
        const int32_t token = y.values<int32_t>()[i];
        expected.select(0, c.slots[i]).data<uint8_t>()[token] = 1;
        ++drawn;
        // A draw within rounding of a boundary may fall on either side of it.
        if (draw(d, u - 1e-5) != draw(d, u + 1e-5)) {
          ++close;
          continue;
        }
        EXPECT_EQ(token, draw(d, u)) << fmt::format("V {} vocab {} temperature {} k {} p {} min_p {}", c.V,
                                                    c.vocab, p.temperature, p.top_k, p.top_p, p.min_p);
      }
      EXPECT_TRUE(test::same_bits(seen, expected));
    }
    EXPECT_LT(close, drawn / 50);
  });
}

// Frequencies of many draws against the reference's probabilities: chi-square within 5 standard deviations,
// and nothing outside the kept set.
TEST(Sampling, DrawsFollowTheDistribution) {
  test::for_each_target([] {
    const int64_t draws = 4000;
    Rng rng(32);
    for (int trial = 0; trial < 12; ++trial) {
      const int64_t V = 3 + rng.below(trial % 2 ? 20 : 3000);
      std::vector<float> row(static_cast<size_t>(V));
      fill_row(row, rng);
      SamplingParams p = random_params(rng, V);
      p.repetition_penalty = 1, p.temperature = 0.5f + rng.uniform();
      if (trial % 3 == 0) p.top_k = 0, p.top_p = 1, p.min_p = 0;
      const auto d = reference::distribution(std::vector<double>(row.begin(), row.end()), {}, p);
      std::map<int32_t, int> counts;
      for (int64_t t = 0; t < draws; ++t) ++counts[sample_one(row, p, t)];
      double chi = 0, classes = 0, rare = 0;
      int64_t inside = 0, rare_count = 0;
      for (size_t i = 0; i < d.ids.size(); ++i) {
        const double expected = d.probabilities[i] * static_cast<double>(draws);
        const int count = counts.count(d.ids[i]) ? counts[d.ids[i]] : 0;
        inside += count;
        if (expected < 5) {
          rare += expected, rare_count += count;
        } else {
          chi += (count - expected) * (count - expected) / expected, ++classes;
        }
      }
      if (rare >= 1)
        chi += (static_cast<double>(rare_count) - rare) * (static_cast<double>(rare_count) - rare) / rare;
      EXPECT_EQ(inside, draws);
      EXPECT_LT(chi, classes + 1 + 5 * std::sqrt(2 * (classes + 1))) << "V " << V << " classes " << classes;
    }
  });
}

// Many positions of a small row: the tokens that come out are exactly those a filter keeps.
TEST(Sampling, FiltersKeepWhatTheySay) {
  auto support = [](const std::vector<float>& row, const SamplingParams& p) {
    std::set<int32_t> ids;
    for (int64_t t = 0; t < 2000; ++t) ids.insert(sample_one(row, p, t));
    return ids;
  };
  using Ids = std::set<int32_t>;
  test::for_each_target([&] {
    const std::vector<float> equal(8, 1.5f), steps{0, 1, 2, 3};  // weights of steps: e^-3 e^-2 e^-1 1
    EXPECT_EQ(support(equal, {}), (Ids{0, 1, 2, 3, 4, 5, 6, 7}));
    EXPECT_EQ(support(equal, {.top_k = 3}), (Ids{0, 1, 2}));            // of equals the lowest ids
    EXPECT_EQ(support(equal, {.top_p = 0.5f}), (Ids{0, 1, 2, 3}));      // reaches 0.5 exactly
    EXPECT_EQ(support(equal, {.top_p = 0.51f}), (Ids{0, 1, 2, 3, 4}));  // the token that crosses stays
    EXPECT_EQ(support(equal, {.top_p = 1e-9f}), (Ids{0}));
    EXPECT_EQ(support(equal, {.top_k = 4, .top_p = 0.5f}), (Ids{0, 1}));  // top_p of what top_k left
    EXPECT_EQ(support(equal, {.top_p = 0.0f}).size(), 8u);
    EXPECT_EQ(support(steps, {.min_p = 0.3f}), (Ids{2, 3}));
    EXPECT_EQ(support(steps, {.temperature = 2.0f, .min_p = 0.3f}), (Ids{1, 2, 3}));
    EXPECT_EQ(support(steps, {.top_p = 0.64f}), (Ids{3}));  // 0.644, 0.881, ...
    EXPECT_EQ(support(steps, {.top_p = 0.65f}), (Ids{2, 3}));
    EXPECT_EQ(support(steps, {.top_k = 99, .top_p = 0.65f}), (Ids{2, 3}));
    EXPECT_EQ(support({-INFINITY, 1, -INFINITY, 1}, {.top_k = 3}), (Ids{1, 3}));
    EXPECT_EQ(support({kNan, 1, INFINITY, 1}, {.top_p = 0.9f}), (Ids{2}));
  });
}

TEST(Sampling, GreedyTakesTheLowestIdOfTheHighest) {
  const SamplingParams greedy{.temperature = 0}, one{.temperature = 5, .top_k = 1};
  test::for_each_target([&] {
    Rng rng(33);
    for (int trial = 0; trial < 400; ++trial) {
      std::vector<float> row(static_cast<size_t>(1 + rng.below(trial % 4 ? 90 : 3000)));
      for (float& x : row) x = std::round(rng.normal());
      if (row.size() > 2) row[0] = kNan, row[1] = -INFINITY;
      int32_t best = -1;
      for (int32_t i = 0; i < std::ssize(row); ++i) {
        const float score = row[static_cast<size_t>(i)];
        if (std::isfinite(score) && (best < 0 || score > row[static_cast<size_t>(best)])) best = i;
      }
      EXPECT_EQ(sample_one(row, greedy), best);
      EXPECT_EQ(sample_one(row, one), best);
    }
    EXPECT_EQ(sample_one({-0.0f, 0.0f}, greedy), 0);
    EXPECT_EQ(sample_one({1, 2, 9, 8}, greedy, 0, 2), 1);  // ids from vocab on are masked
    EXPECT_EQ(sample_one({1, kNan, INFINITY}, greedy), 2);
  });
}

TEST(Sampling, ExtremeTemperatures) {
  std::vector<float> row(300);
  for (size_t i = 0; i < row.size(); ++i) row[i] = static_cast<float>((i * 37) % 300) / 10;
  for (const float t : {1e-44f, 1e-30f, 1e-3f}) {
    for (const float top_p : {1.0f, 0.9f}) {
      SamplingParams p{.temperature = t, .top_p = top_p};
      EXPECT_EQ(sample_one(row, p), sample_one(row, {.temperature = 0})) << t;
      p.top_k = 5;
      EXPECT_EQ(sample_one(row, p), sample_one(row, {.temperature = 0})) << t;
    }
  }
  std::set<int32_t> ids;
  for (int64_t t = 0; t < 3000; ++t) ids.insert(sample_one(row, {.temperature = 1e38f}, t));
  EXPECT_EQ(ids.size(), 300u);
}

// Scores at both ends of f32, and all alike: nothing is left to tell them apart by their distances.
TEST(Sampling, FiltersOfExtremeScores) {
  const auto n = static_cast<int32_t>(1000);
  std::vector<float> row(n, -3e38f);
  for (int32_t i = 500; i < n; ++i) row[static_cast<size_t>(i)] = 3e38f;
  const std::vector<float> flat(n, -1e-45f);
  test::for_each_target([&] {
    for (int64_t t = 0; t < 200; ++t) {
      const int32_t k = sample_one(row, {.top_k = 600}, t), p = sample_one(row, {.top_p = 0.5f}, t);
      EXPECT_TRUE(k >= 500 && k < n) << k;
      EXPECT_TRUE(p >= 500 && p < 750) << p;
      EXPECT_LT(sample_one(flat, {.top_k = 600, .top_p = 0.5f}, t), 300);
      EXPECT_LT(sample_one(flat, {.top_p = 0.25f}, t), 250);
    }
  });
}

TEST(Sampling, PenaltyLowersWhatWasSeen) {
  const Tensor logits = Tensor::from_values<float>(std::vector<float>{4, 3, -1, -2}, {1, 4});
  const SamplingParams p{.temperature = 0, .repetition_penalty = 2};
  const Tensor seen = Tensor::zeros({3, 4}, DType::u8);
  const std::vector<int32_t> slots{2};
  std::vector<int32_t> tokens;
  for (int64_t t = 0; t < 3; ++t) {
    const Tensor y = sample(logits, 4, std::span(&p, 1), seen, slots, std::span(&t, 1));
    tokens.push_back(y.values<int32_t>()[0]);
  }
  EXPECT_EQ(tokens, (std::vector<int32_t>{0, 1, 0}));  // 4 3, then 2 3, then 2 1.5
  EXPECT_EQ(test::to_doubles(logits), (std::vector<double>{4, 3, -1, -2}));
  const auto marks = seen.values<uint8_t>();
  EXPECT_EQ(std::vector<uint8_t>(marks.begin(), marks.end()),
            (std::vector<uint8_t>{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0}));
}

TEST(Sampling, DependsOnSeedAndPositionAlone) {
  test::for_each_target([] {
    Rng rng(34);
    const int64_t B = 24, V = 3001;
    const Tensor one = test::random_normal({1, V}, rng), logits = Tensor::empty({B, V});
    std::vector<SamplingParams> params;
    std::vector<int64_t> positions;
    std::vector<int32_t> alone;
    for (int64_t b = 0; b < B; ++b) {
      std::copy_n(one.data<float>(), V, logits.data<float>() + b * V);
      SamplingParams p = random_params(rng, V);
      p.repetition_penalty = 1;
      params.push_back(p), positions.push_back(b * 7);
      alone.push_back(
          sample(one, V, std::span(&p, 1), {}, {}, std::span(&positions.back(), 1)).values<int32_t>()[0]);
    }
    for (const int threads : {1, 2, 3, 5}) {
      const test::ThreadScope scope(threads);
      const Tensor y = sample(logits, V, params, {}, {}, positions);
      const auto tokens = y.values<int32_t>();
      EXPECT_EQ(std::vector<int32_t>(tokens.begin(), tokens.end()), alone);
    }
  });
  const std::vector<float> flat(1000, 0.0f);
  std::set<int32_t> by_seed, by_position;
  for (int64_t i = 0; i < 100; ++i) {
    by_seed.insert(sample_one(flat, {.seed = static_cast<uint64_t>(i)}));
    by_position.insert(sample_one(flat, {}, i));
  }
  EXPECT_GT(by_seed.size(), 80u);
  EXPECT_GT(by_position.size(), 80u);
}

// Rows that a step uses again and again: ids are written in place, positions advance, and a failed call
// changes neither.
TEST(Sampling, RowsAdvance) {
  Rng rng(35);
  for (int trial = 0; trial < 60; ++trial) {
    const Case c(rng);
    const Tensor rows = sampling_rows(c.params, c.slots, c.positions);
    const Tensor seen = c.seen.clone(), expected_seen = c.seen.clone(),
                 ids = Tensor::zeros({c.B}, DType::i32);
    std::vector<int64_t> positions = c.positions;
    for (int step = 0; step < 4; ++step) {
      sample(c.logits, c.vocab, rows, seen, ids);
      EXPECT_TRUE(
          test::same_bits(ids, sample(c.logits, c.vocab, c.params, expected_seen, c.slots, positions)));
      EXPECT_TRUE(test::same_bits(seen, expected_seen));
      for (int64_t& position : positions) ++position;
      EXPECT_TRUE(test::same_bits(rows, sampling_rows(c.params, c.slots, positions)));
    }
    const Tensor before = rows.clone(), none = Tensor::empty(c.logits.shape());
    std::fill_n(none.data<float>(), none.numel(), -INFINITY);
    EXPECT_THROW(sample(none, c.vocab, rows, seen, ids), Error);
    EXPECT_TRUE(test::same_bits(rows, before));
    EXPECT_TRUE(test::same_bits(seen, expected_seen));
  }
}

std::string error_of(const SamplingParams& p) {
  try {
    check(p);
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

TEST(Sampling, NamesABadParameterWithItsValue) {
  EXPECT_EQ(error_of({}), "");
  EXPECT_EQ(error_of({.top_p = 1.5f}), "top_p is 1.5, expected a number between 0 and 1");
  EXPECT_NE(error_of({.temperature = -1}).find("temperature is -1,"), std::string::npos);
  EXPECT_NE(error_of({.top_k = -3}).find("top_k is -3,"), std::string::npos);
  EXPECT_NE(error_of({.min_p = 1}).find("min_p is 1,"), std::string::npos);
  EXPECT_NE(error_of({.repetition_penalty = 0}).find("repetition_penalty is 0,"), std::string::npos);
  for (const float bad : {kNan, -INFINITY}) {
    EXPECT_NE(error_of({.temperature = bad}), "");
    EXPECT_NE(error_of({.top_p = bad}), "");
    EXPECT_NE(error_of({.min_p = bad}), "");
    EXPECT_NE(error_of({.repetition_penalty = bad}), "");
  }
}

TEST(Sampling, NamesARowWithoutAFiniteScore) {
  const Tensor logits = Tensor::zeros({3, 40}), seen = Tensor::zeros({3, 40}, DType::u8);
  for (const float t : {0.0f, 1.0f}) {
    for (const float bad : {kNan, -INFINITY, INFINITY}) {
      for (int64_t v = 0; v < 40; ++v) logits.data<float>()[40 + v] = v < 39 ? bad : 1.0f;
      const std::vector<SamplingParams> params(3, SamplingParams{.temperature = t});
      const std::vector<int64_t> positions(3);
      const std::vector<int32_t> slots{0, 1, 2};
      EXPECT_NO_THROW(sample(logits, 40, params, {}, {}, positions));
      try {
        sample(logits, 39, params, seen, slots, positions);  // the finite score is masked
        FAIL() << bad;
      } catch (const Error& e) {
        EXPECT_STREQ(e.what(), "sampling: row 1 of the logits has no finite score");
      }
      EXPECT_EQ(0, std::count(seen.values<uint8_t>().begin(), seen.values<uint8_t>().end(), 1));
    }
  }
}

TEST(Sampling, NamesWhatDoesNotFit) {
  const Tensor logits = Tensor::zeros({2, 5}), seen = Tensor::zeros({2, 5}, DType::u8);
  std::vector<SamplingParams> params(2);
  const std::vector<int64_t> positions(2);
  const std::vector<int32_t> slots{0, 1}, outside{0, 2};
  EXPECT_NO_THROW(sample(logits, 5, params, seen, slots, positions));
  EXPECT_THROW(sample(logits, 6, params, {}, {}, positions), Error);
  EXPECT_THROW(sample(logits, 0, params, {}, {}, positions), Error);
  EXPECT_THROW(sample(logits, 5, std::span(params).first(1), {}, {}, positions), Error);
  EXPECT_THROW(sample(logits, 5, params, {}, {}, std::span(positions).first(1)), Error);
  EXPECT_THROW(sample(logits, 5, params, seen, outside, positions), Error);
  EXPECT_THROW(sample(logits, 5, params, seen, {}, positions), Error);
  EXPECT_THROW(sample(logits, 5, params, Tensor::zeros({2, 4}, DType::u8), slots, positions), Error);
  const Tensor rows = sampling_rows(params, slots, positions), ids = Tensor::zeros({2}, DType::i32);
  EXPECT_NO_THROW(sample(logits, 5, rows, seen, ids));
  EXPECT_THROW(sample(logits, 5, rows.slice(0, 0, 1), seen, ids), Error);
  EXPECT_THROW(sample(logits, 5, rows, seen, Tensor::zeros({3}, DType::i32)), Error);
  EXPECT_THROW(sample(logits, 5, rows, seen, Tensor::zeros({2})), Error);
  EXPECT_THROW(sampling_rows(params, std::span(slots).first(1), positions), Error);
  const std::vector<int32_t> negative{0, -1};
  EXPECT_THROW(sampling_rows(params, negative, positions), Error);
  params[1].repetition_penalty = 1.2f;
  EXPECT_THROW(sample(logits, 5, params, {}, {}, positions), Error);
  params[1].top_p = 2;
  EXPECT_THROW(sampling_rows(params, slots, positions), Error);
}

}  // namespace
}  // namespace ssm
