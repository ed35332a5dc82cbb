#include "ssm/ops/causal_conv1d/causal_conv1d.h"

#include <gtest/gtest.h>

#include "ssm/ops/causal_conv1d/causal_conv1d_reference.h"
#include "ssm/ops/simd/test_targets.h"
#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

constexpr double kBound = 5e-6;

// A ragged batch over permuted slots, x with a row stride, weights laid out either way.
struct Case {
  int64_t T = 0, C, K, slots;
  std::vector<int64_t> lengths;
  std::vector<int32_t> slot;
  Tensor x, weight, bias, state;
  Activation activation;

  explicit Case(Rng& rng, int64_t longest = 30, int64_t least_channels = 1) {
    C = least_channels + rng.below(rng.below(8) ? 50 : 2500);
    K = 1 + rng.below(rng.below(4) ? 5 : 12);
    const int64_t B = 1 + rng.below(5);
    slots = B + rng.below(3);
    slot = test::slots_in_any_order(B, slots, rng);
    for (int64_t b = 0; b < B; ++b) {
      lengths.push_back(1 + rng.below(rng.below(2) ? 4 : longest));
      T += lengths.back();
    }
    const int64_t before = rng.below(2) ? rng.below(20) : 0;
    x = test::random_normal({T, C + before}, rng).slice(1, before, before + C);
    weight =
        rng.below(2) ? test::random_normal({K, C}, rng).transpose(0, 1) : test::random_normal({C, K}, rng);
    if (rng.below(2)) bias = test::random_normal({C}, rng);
    if (rng.below(4)) state = test::random_normal({slots, K - 1, C}, rng);
    activation = rng.below(2) ? Activation::silu : Activation::none;
  }

  SequenceBatch batch() const { return SequenceBatch(lengths, slot); }
  Tensor rows(const Tensor& t, size_t b) const {
    const SequenceBatch all = batch();
    return t.slice(0, all.offset(static_cast<int64_t>(b)), all.offset(static_cast<int64_t>(b) + 1));
  }
  Tensor copy_of_state() const { return state.defined() ? state.clone() : Tensor(); }
  std::string name() const {
    return fmt::format("C {} K {} lengths {} slots {} state {}", C, K, fmt::join(lengths, ","),
                       fmt::join(slot, ","), state.defined());
  }
};

TEST(CausalConv1d, EqualsTheReference) {
  test::for_each_target([] {
    Rng rng(21);
    for (int trial = 0; trial < 300; ++trial) {
      const Case c(rng);
      const Tensor state = c.copy_of_state();
      const Tensor y = causal_conv1d(c.x, c.weight, c.bias, c.activation, c.batch(), state);
      for (size_t b = 0; b < c.lengths.size(); ++b) {
        const auto bias = c.bias.defined() ? test::to_doubles(c.bias) : std::vector<double>();
        std::vector<double> window(static_cast<size_t>((c.K - 1) * c.C), 0.0);
        if (c.state.defined()) window = test::to_doubles(c.state.select(0, c.slot[b]));
        const auto expected =
            reference::causal_conv1d(test::to_doubles(c.rows(c.x, b)), test::to_doubles(c.weight), bias,
                                     c.activation, c.C, c.K, window);
        EXPECT_LT(test::relative_error(c.rows(y, b), expected), kBound) << c.name();
        if (c.state.defined()) {
          EXPECT_EQ(test::to_doubles(state.select(0, c.slot[b])), window) << c.name();
        }
      }
    }
  });
}

TEST(CausalConv1d, LeavesTheStatesOfOtherSlots) {
  Rng rng(22);
  const Tensor state = test::random_normal({4, 3, 17}, rng), before = state.clone();
  causal_conv1d(test::random_normal({2, 17}, rng), test::random_normal({17, 4}, rng), {}, Activation::none,
                SequenceBatch::single(2, 2), state);
  for (const int64_t slot : {0, 1, 3})
    EXPECT_TRUE(test::same_bits(state.select(0, slot), before.select(0, slot)));
}

TEST(CausalConv1d, ABatchEqualsItsSequencesAlone) {
  test::for_each_target([] {
    Rng rng(23);
    for (int trial = 0; trial < 150; ++trial) {
      const Case c(rng);
      const Tensor state = c.copy_of_state(), alone = c.copy_of_state();
      const Tensor y = causal_conv1d(c.x, c.weight, c.bias, c.activation, c.batch(), state);
      for (size_t b = 0; b < c.lengths.size(); ++b) {
        const Tensor one = causal_conv1d(c.rows(c.x, b), c.weight, c.bias, c.activation,
                                         SequenceBatch::single(c.lengths[b], c.slot[b]), alone);
        EXPECT_TRUE(test::same_bits(c.rows(y, b), one)) << c.name();
      }
      if (state.defined()) {
        EXPECT_TRUE(test::same_bits(state, alone)) << c.name();
      }
    }
  });
}

TEST(CausalConv1d, AnySplitGivesTheSameBits) {
  test::for_each_target([] {
    Rng rng(24);
    for (int trial = 0; trial < 150; ++trial) {
      const Case c(rng, 80);
      const Tensor x = c.rows(c.x, 0), whole = Tensor::zeros({1, c.K - 1, c.C}), parts = whole.clone();
      const int64_t length = c.lengths[0];
      const Tensor y = causal_conv1d(x, c.weight, c.bias, c.activation, SequenceBatch::single(length), whole);
      EXPECT_TRUE(test::same_bits(
          y, causal_conv1d(x, c.weight, c.bias, c.activation, SequenceBatch::single(length), {})));
      for (int64_t t = 0; t < length;) {
        const int64_t n = std::min(length - t, 1 + rng.below(rng.below(2) ? 3 : 40));
        const Tensor part = causal_conv1d(x.slice(0, t, t + n), c.weight, c.bias, c.activation,
                                          SequenceBatch::single(n), parts);
        EXPECT_TRUE(test::same_bits(y.slice(0, t, t + n), part)) << c.name() << " rows " << t << " + " << n;
        t += n;
      }
      EXPECT_TRUE(test::same_bits(whole, parts)) << c.name();
    }
  });
}

TEST(CausalConv1d, ThreadsAndLayoutsGiveTheSameBits) {
  test::for_each_target([] {
    Rng rng(25);
    for (int trial = 0; trial < 6; ++trial) {
      const Case c(rng, 200, 1100);  // enough work for several pieces
      const Tensor state = c.copy_of_state();
      const Tensor y = causal_conv1d(c.x, c.weight, c.bias, c.activation, c.batch(), state);
      for (const int threads : {1, 2, 3, 5}) {
        const test::ThreadScope scope(threads);
        const Tensor again = c.copy_of_state();
        const Tensor weight =
            threads % 2 ? c.weight.clone() : c.weight.transpose(0, 1).clone().transpose(0, 1);
        EXPECT_TRUE(
            test::same_bits(y, causal_conv1d(c.x.clone(), weight, c.bias, c.activation, c.batch(), again)));
        if (state.defined()) {
          EXPECT_TRUE(test::same_bits(state, again)) << c.name();
        }
      }
    }
  });
}

TEST(CausalConv1d, NamesWhatDoesNotFit) {
  const Tensor x = Tensor::zeros({3, 5}), weight = Tensor::zeros({5, 4});
  const auto batch = SequenceBatch::single(3, 1);
  auto conv = [&](const Tensor& w, const Tensor& bias, const SequenceBatch& b, const Tensor& state) {
    return causal_conv1d(x, w, bias, Activation::none, b, state);
  };
  EXPECT_NO_THROW(conv(weight, {}, batch, Tensor::zeros({2, 3, 5})));
  EXPECT_THROW(conv(weight, {}, batch, Tensor::zeros({1, 3, 5})), Error);  // slot 1 of 1
  EXPECT_THROW(conv(weight, {}, batch, Tensor::zeros({2, 4, 5})), Error);
  EXPECT_THROW(conv(weight, Tensor::zeros({4}), batch, {}), Error);
  EXPECT_THROW(conv({}, {}, batch, {}), Error);
  EXPECT_THROW(conv(weight, {}, SequenceBatch::single(4), {}), Error);
  EXPECT_THROW(conv(Tensor::zeros({6, 4}), {}, batch, {}), Error);
}

}  // namespace
}  // namespace ssm
