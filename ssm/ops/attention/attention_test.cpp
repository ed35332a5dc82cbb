#include "ssm/ops/attention/attention.h"

#include <gtest/gtest.h>

#include "ssm/ops/attention/attention_cases.h"
#include "ssm/ops/simd/test_targets.h"
#include "ssm/ops/test_gradient.h"

namespace ssm {
namespace {

using test::AttentionCase;
using test::contents;
using test::random_heads;

constexpr double kBound = 1e-5;

TEST(Attention, EqualsTheReferenceOnEveryTarget) {
  test::for_each_target([] {
    Rng rng(1);
    for (int trial = 0; trial < 60; ++trial) {
      const AttentionCase c(rng);
      KvCache kv = c.cache();
      const Tensor y = attention(c.qkv, c.h, c.batch(), &kv);
      for (size_t b = 0; b < c.lengths.size(); ++b) {
        auto past = c.reference_past(b);
        const auto expected = reference::attention(test::to_doubles(c.rows(c.qkv, b)), c.h, past);
        EXPECT_LT(test::relative_error(c.rows(y, b), expected), kBound) << c.name();
        std::vector<double> all = past.keys;
        all.insert(all.end(), past.values.begin(), past.values.end());
        const std::vector<float> kept = contents(kv, c.slot[b]);
        EXPECT_LT(test::relative_difference({kept.begin(), kept.end()}, all), 2e-6) << c.name();
      }
    }
  });
}

TEST(Attention, PositionsFarOutAreExact) {
  Rng rng(2);
  const AttentionHeads h{.heads = 1, .kv_heads = 1, .head_dim = 32, .rotary_dim = 32};
  KvCache kv(1, 1, 32);
  const Tensor past = test::random_normal({20000, h.width()}, rng),
               now = test::random_normal({3, h.width()}, rng);
  attention(past, h, SequenceBatch::single(20000), &kv);
  const Tensor y = attention(now, h, SequenceBatch::single(3), &kv);
  reference::KeysAndValues<double> kept;
  for (int64_t t = 0; t < 20000; ++t) {
    const std::vector<double> row = test::to_doubles(past.slice(0, t, t + 1));
    const std::vector<double> key = reference::rotated(row.data() + 32, t, h);
    kept.keys.insert(kept.keys.end(), key.begin(), key.end());
    kept.values.insert(kept.values.end(), row.begin() + 64, row.end());
  }
  EXPECT_LT(test::relative_error(y, reference::attention(test::to_doubles(now), h, kept)), kBound);
}

TEST(Attention, GreatScoresDoNotOverflow) {
  Rng rng(3);
  const AttentionHeads h{.heads = 2, .kv_heads = 1, .head_dim = 8, .rotary_dim = 8};
  const Tensor qkv = test::random_normal({200, h.width()}, rng, 40.0f);
  reference::KeysAndValues<double> none;
  EXPECT_LT(test::relative_error(attention(qkv, h, SequenceBatch::single(200), nullptr),
                                 reference::attention(test::to_doubles(qkv), h, none)),
            5e-4);  // scores of thousands in f32
}

TEST(Attention, ABatchEqualsItsSequencesAlone) {
  test::for_each_target([] {
    Rng rng(4);
    for (int trial = 0; trial < 40; ++trial) {
      const AttentionCase c(rng);
      KvCache together = c.cache(), alone = c.cache();
      const Tensor y = attention(c.qkv, c.h, c.batch(), &together);
      for (size_t b = 0; b < c.lengths.size(); ++b) {
        const Tensor one =
            attention(c.rows(c.qkv, b), c.h, SequenceBatch::single(c.lengths[b], c.slot[b]), &alone);
        EXPECT_TRUE(test::same_bits(c.rows(y, b), one)) << c.name();
        EXPECT_EQ(contents(together, c.slot[b]), contents(alone, c.slot[b]));
      }
    }
  });
}

TEST(Attention, AnySplitGivesTheSameBits) {
  test::for_each_target([] {
    Rng rng(5);
    for (int trial = 0; trial < 40; ++trial) {
      const AttentionCase c(rng, 300);
      const Tensor x = c.rows(c.qkv, 0);
      const int64_t length = c.lengths[0];
      KvCache whole(1, c.h.kv_heads, c.h.head_dim), parts(1, c.h.kv_heads, c.h.head_dim);
      const Tensor y = attention(x, c.h, SequenceBatch::single(length), &whole);
      EXPECT_TRUE(test::same_bits(y, attention(x, c.h, SequenceBatch::single(length), nullptr)));
      for (int64_t t = 0; t < length;) {
        const int64_t n = std::min(length - t, 1 + rng.below(rng.below(2) ? 3 : 100));
        const Tensor part = attention(x.slice(0, t, t + n), c.h, SequenceBatch::single(n), &parts);
        EXPECT_TRUE(test::same_bits(y.slice(0, t, t + n), part)) << c.name() << " rows " << t << " + " << n;
        t += n;
      }
      EXPECT_EQ(contents(whole, 0), contents(parts, 0)) << c.name();
    }
  });
}

TEST(Attention, ThreadsGiveTheSameBits) {
  Rng rng(6);
  for (int trial = 0; trial < 6; ++trial) {
    const AttentionCase c(rng, 400);
    KvCache kv = c.cache();
    const Tensor y = attention(c.qkv, c.h, c.batch(), &kv);
    for (const int threads : {1, 2, 3, 5}) {
      const test::ThreadScope scope(threads);
      KvCache again = c.cache();
      EXPECT_TRUE(test::same_bits(y, attention(c.qkv.clone(), c.h, c.batch(), &again))) << c.name();
    }
  }
}

TEST(Attention, LeavesOtherSlots) {
  Rng rng(7);
  const AttentionHeads h{.heads = 2, .kv_heads = 2, .head_dim = 4};
  KvCache kv(3, 2, 4);
  attention(test::random_normal({70, h.width()}, rng), h, SequenceBatch::single(70, 0), &kv);
  const std::vector<float> before = contents(kv, 0);
  attention(test::random_normal({5, h.width()}, rng), h, SequenceBatch::single(5, 2), &kv);
  EXPECT_EQ(contents(kv, 0), before);
  EXPECT_EQ(kv.tokens(1), 0);
  EXPECT_EQ(kv.tokens(2), 5);
}

TEST(Attention, NamesWhatDoesNotFit) {
  const AttentionHeads h{.heads = 2, .kv_heads = 1, .head_dim = 4, .rotary_dim = 4};
  const Tensor qkv = Tensor::zeros({3, h.width()});
  const auto batch = SequenceBatch::single(3, 1);
  KvCache kv(2, 1, 4), small(1, 1, 4), other(2, 2, 4);
  EXPECT_NO_THROW(attention(qkv, h, batch, &kv));
  EXPECT_THROW(attention(qkv, h, batch, &small), Error);
  EXPECT_THROW(attention(qkv, h, batch, &other), Error);
  EXPECT_THROW(attention({}, h, batch, &kv), Error);
  EXPECT_THROW(attention(qkv.slice(1, 0, 8), h, batch, &kv), Error);
  EXPECT_THROW(attention(qkv, h, SequenceBatch::single(4), &kv), Error);
  for (const AttentionHeads& bad :
       {AttentionHeads{.heads = 3, .kv_heads = 2, .head_dim = 4},
        AttentionHeads{.heads = 2, .kv_heads = 1, .head_dim = 4, .rotary_dim = 3},
        AttentionHeads{.heads = 2, .kv_heads = 1, .head_dim = 4, .rotary_dim = 6},
        AttentionHeads{.heads = 2, .kv_heads = 1, .head_dim = 4, .by_head = true}}) {
    EXPECT_THROW(attention(Tensor::zeros({3, bad.width()}), bad, batch, nullptr), Error);
  }
}

}  // namespace
}  // namespace ssm
