#include "ssm/ops/attention/attention_cases.h"
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/ops/test_gradient.h"

#include "ssm/core/graph.h"

namespace ssm {
namespace {

using test::AttentionCase;
using test::contents;

// Of y at the worst place, from qkv in `dtype`: rotated keys and queries and the weights are rounded too.
double bound(DType dtype) { return dtype == DType::f32 ? 2e-5 : 16 * rounding_of(dtype); }

// Runs the case's batch over a cache that has read its past, and compares y and what the cache then holds.
void expect_reference(const AttentionCase& c, DType dtype) {
  KvCache kv = c.cache({kCuda, dtype});
  const Tensor y = attention(on_card(c.qkv.clone(), dtype), c.h, c.batch(), &kv).to(kCpu).to(DType::f32);
  for (size_t b = 0; b < c.lengths.size(); ++b) {
    auto past = c.reference_past(b, dtype);
    const auto expected =
        reference::attention(to_doubles(rounded(c.rows(c.qkv, b).clone(), dtype)), c.h, past);
    EXPECT_LT(test::relative_error(c.rows(y, b), expected), bound(dtype))
        << c.name() << " " << name_of(dtype) << " sequence " << b;
    std::vector<double> all = past.keys;
    all.insert(all.end(), past.values.begin(), past.values.end());
    const std::vector<float> kept = contents(kv, c.slot[b]);
    EXPECT_LT(test::relative_difference({kept.begin(), kept.end()}, all), 2 * rounding_of(dtype) + 2e-6)
        << c.name() << " " << name_of(dtype);
  }
}

TEST(AttentionCuda, EqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(1);
  for (int trial = 0; trial < 90; ++trial) expect_reference(AttentionCase(rng, 300), kTypes[trial % 3]);
}

TEST(AttentionCuda, EveryWidthOfAHead) {
  SSM_NEED_CUDA();
  Rng rng(2);
  for (const int64_t D : {1, 8, 16, 20, 32, 33, 64, 72, 80, 96, 128, 130, 256}) {
    for (const DType dtype : kTypes) {
      AttentionCase c(rng, 200);
      c.h.head_dim = D;
      c.h.rotary_dim = D / 4 * 2;
      const SequenceBatch batch = c.batch();
      c.qkv = test::random_normal({batch.total(), c.h.width()}, rng, 1.5f);
      for (size_t b = 0; b < c.past.size(); ++b) {
        if (c.before[b]) c.past[b] = test::random_normal({c.before[b], c.h.width()}, rng, 1.5f);
      }
      expect_reference(c, dtype);
    }
  }
}

TEST(AttentionCuda, StepsOfAnyBatch) {
  SSM_NEED_CUDA();
  Rng rng(3);
  for (int trial = 0; trial < 60; ++trial) {
    AttentionCase c(rng, trial % 4 ? 400 : 5000);
    c.lengths.assign(c.lengths.size(), 1);
    c.T = std::ssize(c.lengths);
    c.qkv = test::random_normal({c.T, c.h.width()}, rng, 1.5f);
    expect_reference(c, kTypes[trial % 3]);
  }
}

TEST(AttentionCuda, LongTextsAndFarPositions) {
  SSM_NEED_CUDA();
  Rng rng(4);
  const AttentionHeads h{.heads = 4, .kv_heads = 2, .head_dim = 64, .rotary_dim = 64};
  for (const DType dtype : kTypes) {
    KvCache kv(1, 2, 64, nullptr, {kCuda, dtype});
    const Tensor past = test::random_normal({33000, h.width()}, rng),
                 now = test::random_normal({3, h.width()}, rng);
    attention(on_card(past, dtype), h, SequenceBatch::single(33000), &kv);
    Tensor y = attention(on_card(now.slice(0, 0, 2), dtype), h, SequenceBatch::single(2), &kv);
    const Tensor last =
        attention(on_card(now.slice(0, 2, 3).clone(), dtype), h, SequenceBatch::single(1), &kv);
    reference::KeysAndValues<double> kept;
    const std::vector<double> rows = to_doubles(rounded(past, dtype));
    for (int64_t t = 0; t < 33000; ++t) {
      const double* const row = rows.data() + t * h.width();
      for (int64_t g = 0; g < 2; ++g) {
        const std::vector<double> key = reference::rotated(row + (4 + g) * 64, t, h);
        kept.keys.insert(kept.keys.end(), key.begin(), key.end());
        kept.values.insert(kept.values.end(), row + (6 + g) * 64, row + (7 + g) * 64);
      }
    }
    const auto expected = reference::attention(to_doubles(rounded(now, dtype)), h, kept);
    const std::vector<double> first(expected.begin(), expected.begin() + 512);
    const std::vector<double> rest(expected.begin() + 512, expected.end());
    EXPECT_LT(card_error(y, first), 2 * bound(dtype)) << name_of(dtype);
    EXPECT_LT(card_error(last, rest), 2 * bound(dtype)) << name_of(dtype);
  }
}

TEST(AttentionCuda, GreatScoresDoNotOverflow) {
  SSM_NEED_CUDA();
  Rng rng(5);
  const AttentionHeads h{.heads = 2, .kv_heads = 1, .head_dim = 8, .rotary_dim = 8};
  const Tensor qkv = test::random_normal({200, h.width()}, rng, 40.0f);
  reference::KeysAndValues<double> none;
  EXPECT_LT(card_error(attention(on_card(qkv), h, SequenceBatch::single(200), nullptr),
                       reference::attention(to_doubles(qkv), h, none)),
            5e-4);
}

TEST(AttentionCuda, TheGradientEqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(8);
  for (int trial = 0; trial < 60; ++trial) {
    const DType dtype = kTypes[trial % 3];
    const AttentionHeads h = test::random_heads(rng);
    std::vector<int64_t> lengths;
    std::vector<Tensor> past, past_on_card;
    for (int64_t b = 1 + rng.below(3); b > 0; --b) {
      lengths.push_back(1 + rng.below(rng.below(2) ? 6 : 200));
      past.push_back(rng.below(2) ? test::random_normal({1 + rng.below(100), h.width()}, rng) : Tensor());
      past_on_card.push_back(on_card(past.back(), dtype));
    }
    const SequenceBatch batch = SequenceBatch::in_order(lengths);
    const Tensor qkv = test::random_normal({batch.total(), h.width()}, rng);
    const Tensor dy = test::random_normal({batch.total(), h.heads * h.head_dim}, rng);
    const Tensor dqkv =
        test::attention_gradient(h, on_card(qkv, dtype), lengths, past_on_card, on_card(dy, dtype))
            .to(kCpu)
            .to(DType::f32);
    for (int64_t b = 0; b < batch.size(); ++b) {
      const auto rows = [&](const Tensor& t) { return t.slice(0, batch.offset(b), batch.offset(b + 1)); };
      const Tensor& before = past[static_cast<size_t>(b)];
      reference::KeysAndValues<double> kv;
      if (before.defined()) reference::attention(to_doubles(rounded(before, dtype)), h, kv);
      const auto expected = reference::attention_backward(to_doubles(rounded(rows(qkv).clone(), dtype)), h,
                                                          kv, to_doubles(rounded(rows(dy).clone(), dtype)));
      EXPECT_LT(test::relative_error(rows(dqkv), expected),
                dtype == DType::f32 ? 5e-5 : 8 * rounding_of(dtype))
          << fmt::format("{} H {} Hk {} D {} R {} lengths {}", name_of(dtype), h.heads, h.kv_heads,
                         h.head_dim, h.rotary_dim, fmt::join(lengths, ","));
    }
  }
}

// A captured step, replayed while texts grow over pages, beside rows that only fill up the batch.
TEST(AttentionCuda, ReplayedStepsAreThePlainOnes) {
  SSM_NEED_CUDA();
  Rng rng(6);
  for (const DType dtype : kTypes) {
    const AttentionHeads h{.heads = 4, .kv_heads = 2, .head_dim = 40, .rotary_dim = 20};
    const std::vector<int64_t> lengths{50, 1, 3000};
    const std::vector<int32_t> slots{2, 0, 4}, padded{2, 0, 4, 5};
    KvCache captured(6, 2, 40, nullptr, {kCuda, dtype}), plain(6, 2, 40, nullptr, {kCuda, dtype});
    const Tensor past = on_card(test::random_normal({3051, h.width()}, rng), dtype);
    attention(past, h, SequenceBatch(lengths, slots), &captured);
    attention(past, h, SequenceBatch(lengths, slots), &plain);
    const Tensor qkv = Tensor::empty({4, h.width()}, dtype, kCuda);
    const Tensor positions =
        Tensor::from_values<int64_t>(std::vector<int64_t>{50, 1, 3000, -1}, {4}).to(kCuda);
    const SequenceBatch batch =
        SequenceBatch::steps_on_device(Tensor::from_values<int32_t>(padded, {4}).to(kCuda), positions);
    Arena arena;
    Tensor y;
    const auto step = [&] {
      const ArenaScope scope(&arena);
      y = {};  // its memory is this step's again
      y = attention(qkv, h, batch, &captured);
      advance(positions);
    };
    std::optional<Graph> graph;
    for (int i = 0; i < 100; ++i) {
      const Tensor rows = on_card(test::random_normal({4, h.width()}, rng), dtype);
      copy_bytes(qkv.raw(), kCuda, rows.raw(), kCuda, rows.bytes());
      for (const int32_t slot : slots) captured.reserve(slot, 1);
      captured.table();
      if (i == 1) graph.emplace(step);
      graph ? graph->replay() : step();
      for (const int32_t slot : slots) captured.added(slot, 1);
      const Tensor expected = attention(rows.slice(0, 0, 3), h, SequenceBatch::steps(slots), &plain);
      const Tensor given = y.to(kCpu).to(DType::f32);
      EXPECT_LT(test::relative_error(given.slice(0, 0, 3), to_doubles(expected.to(kCpu).to(DType::f32))),
                bound(dtype))
          << i;
      for (const float filler : given.slice(0, 3, 4).values<float>()) ASSERT_EQ(filler, 0.0f);
    }
    for (const int32_t slot : slots) EXPECT_EQ(contents(captured, slot), contents(plain, slot));
  }
}

TEST(AttentionCuda, CopiesGoTheirOwnWays) {
  SSM_NEED_CUDA();
  Rng rng(7);
  const AttentionHeads h{.heads = 2, .kv_heads = 2, .head_dim = 16, .rotary_dim = 4, .by_head = true};
  const auto budget = std::make_shared<KvBudget>(size_t{1} << 20);
  KvCache kv(3, 2, 16, budget, {kCuda, DType::bf16});
  const auto rows = [&](int64_t n) { return on_card(test::random_normal({n, h.width()}, rng), DType::bf16); };
  attention(rows(100), h, SequenceBatch::single(100, 0), &kv);
  kv.copy(2, kv, 0);
  const std::vector<float> before = contents(kv, 0);
  EXPECT_EQ(contents(kv, 2), before);
  attention(rows(30), h, SequenceBatch::single(30, 2), &kv);
  EXPECT_EQ(contents(kv, 0), before);
  std::vector<float> keys(before.begin(), before.begin() + 3200), values(before.begin() + 3200, before.end());
  kv.assign(1, 100, keys.data(), values.data());
  EXPECT_EQ(contents(kv, 1), before);
  const Tensor same = rows(7);
  EXPECT_TRUE(same_bits(attention(same, h, SequenceBatch::single(7, 1), &kv).to(kCpu),
                        attention(same, h, SequenceBatch::single(7, 0), &kv).to(kCpu)));
  EXPECT_THROW(kv.reserve(0, 100000), Error);
  for (int64_t slot = 0; slot < 3; ++slot) kv.clear(slot);
  EXPECT_EQ(budget->used(), 0u);
}

}  // namespace
}  // namespace ssm
