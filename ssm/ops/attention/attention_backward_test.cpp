#include <gtest/gtest.h>

#include "ssm/ops/attention/attention_cases.h"
#include "ssm/ops/simd/test_targets.h"
#include "ssm/ops/test_gradient.h"

namespace ssm {
namespace {

using test::attention_gradient;

AttentionHeads random_heads(Rng& rng, int64_t widest) {
  AttentionHeads h{};
  h.by_head = rng.below(3) == 0;
  h.kv_heads = 1 + rng.below(2);
  h.heads = h.by_head ? h.kv_heads : h.kv_heads * (1 + rng.below(3));
  h.head_dim = 1 + rng.below(widest);
  h.rotary_dim = rng.below(h.head_dim / 2 + 1) * 2;
  return h;
}

TEST(AttentionBackward, TheReferenceIsTheDerivative) {
  Rng rng(1);
  for (int trial = 0; trial < 8; ++trial) {
    const AttentionHeads h = random_heads(rng, 6);
    reference::KeysAndValues<double> past;
    if (rng.below(2))
      reference::attention(test::to_doubles(test::random_normal({3, h.width()}, rng)), h, past);
    std::vector<double> qkv = test::to_doubles(test::random_normal({4, h.width()}, rng));
    const std::vector<double> dy = test::to_doubles(test::random_normal({4, h.heads * h.head_dim}, rng));
    const auto forward = [&](const std::vector<double>& x) {
      auto kv = past;
      return reference::attention(x, h, kv);
    };
    test::expect_gradient(reference::attention_backward(qkv, h, past, dy), qkv, dy, forward, 1e-6);
  }
}

TEST(AttentionBackward, EqualsTheReferenceOnEveryTarget) {
  test::for_each_target([] {
    Rng rng(2);
    for (int trial = 0; trial < 25; ++trial) {
      const AttentionHeads h = random_heads(rng, 70);
      std::vector<int64_t> lengths;
      std::vector<Tensor> past;
      const int64_t B = 1 + rng.below(3);
      for (int64_t b = 0; b < B; ++b) {
        lengths.push_back(1 + rng.below(rng.below(2) ? 6 : 150));
        past.push_back(rng.below(2) ? test::random_normal({1 + rng.below(100), h.width()}, rng) : Tensor());
      }
      const SequenceBatch batch = SequenceBatch::in_order(lengths);
      const Tensor qkv = test::random_normal({batch.total(), h.width()}, rng);
      const Tensor dy = test::random_normal({batch.total(), h.heads * h.head_dim}, rng);
      const Tensor dqkv = attention_gradient(h, qkv, lengths, past, dy);
      for (int64_t b = 0; b < B; ++b) {
        const auto rows = [&](const Tensor& t) { return t.slice(0, batch.offset(b), batch.offset(b + 1)); };
        const Tensor& before = past[static_cast<size_t>(b)];
        reference::KeysAndValues<double> kv;
        if (before.defined()) reference::attention(test::to_doubles(before), h, kv);
        const auto expected =
            reference::attention_backward(test::to_doubles(rows(qkv)), h, kv, test::to_doubles(rows(dy)));
        EXPECT_LT(test::relative_error(rows(dqkv), expected), 1e-5)
            << h.heads << " " << h.kv_heads << " " << h.head_dim << " "
            << fmt::format("{}", fmt::join(lengths, ","));
        const Tensor alone =
            attention_gradient(h, rows(qkv).clone(), {batch.length(b)}, {before}, rows(dy).clone());
        EXPECT_TRUE(test::same_bits(rows(dqkv), alone));
      }
    }
  });
}

TEST(AttentionBackward, ThreadsGiveTheSameBits) {
  Rng rng(3);
  const AttentionHeads h{.heads = 6, .kv_heads = 3, .head_dim = 20, .rotary_dim = 10};
  const std::vector<int64_t> lengths{130, 1, 40};
  const Tensor qkv = test::random_normal({171, h.width()}, rng), dy = test::random_normal({171, 120}, rng);
  const Tensor once = attention_gradient(h, qkv, lengths, {}, dy);
  for (const int threads : {1, 2, 3, 5}) {
    const test::ThreadScope scope(threads);
    EXPECT_TRUE(test::same_bits(once, attention_gradient(h, qkv, lengths, {}, dy)));
  }
}

}  // namespace
}  // namespace ssm
