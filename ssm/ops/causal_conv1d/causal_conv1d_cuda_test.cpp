// causal_conv1d on a card against the f64 reference, in every activation type; splits and batches bit for
// bit.

#include "ssm/core/graph.h"
#include "ssm/ops/causal_conv1d/causal_conv1d.h"
#include "ssm/ops/causal_conv1d/causal_conv1d_reference.h"
#include "ssm/ops/cuda/test_cuda.h"

namespace ssm {
namespace {

// A ragged batch over permuted slots. x is rounded to `dtype` already; all tensors are on the host.
struct Case {
  int64_t T = 0, C, K, slots;
  std::vector<int64_t> lengths;
  std::vector<int32_t> slot;
  DType dtype;
  Tensor x, weight, bias, state;
  Activation activation;

  Case(Rng& rng, int64_t longest) {
    C = rng.below(3) ? 8 * (1 + rng.below(40)) : 1 + rng.below(2500);
    K = rng.below(2) ? 4 : 1 + rng.below(rng.below(4) ? 5 : 40);
    const int64_t B = 1 + rng.below(5);
    slots = B + rng.below(3);
    slot = test::slots_in_any_order(B, slots, rng);
    const bool step = rng.below(4) == 0;
    for (int64_t b = 0; b < B; ++b) {
      lengths.push_back(step ? 1 : 1 + rng.below(rng.below(2) ? 4 : longest));
      T += lengths.back();
    }
    dtype = kTypes[rng.below(3)];
    x = rounded(test::random_normal({T, C}, rng), dtype);
    weight =
        rng.below(3) ? test::random_normal({K, C}, rng).transpose(0, 1) : test::random_normal({C, K}, rng);
    if (rng.below(2)) bias = test::random_normal({C}, rng);
    // Windows hold inputs that an earlier call saw.
    if (rng.below(4)) state = rounded(test::random_normal({slots, K - 1, C}, rng), dtype);
    activation = rng.below(2) ? Activation::silu : Activation::none;
  }

  SequenceBatch batch() const { return SequenceBatch(lengths, slot); }
  std::string name() const {
    return fmt::format("C {} K {} lengths {} slots {} state {} {}", C, K, fmt::join(lengths, ","),
                       fmt::join(slot, ","), state.defined(), name_of(dtype));
  }
};

// Rows of `t` on the card as columns of a wider tensor, aligned or not.
Tensor upload(const Tensor& t, DType type, Rng& rng) {
  constexpr int64_t kLeft[] = {0, 0, 8, 3};
  const int64_t T = t.size(0), C = t.size(1), left = kLeft[rng.below(4)], right = left ? 8 - left : 0;
  const Tensor wide = test::random_normal({T, left + C + right}, rng, 1e6f);
  for (int64_t row = 0; row < T; ++row)
    std::copy_n(t.data<float>() + row * C, C, wide.data<float>() + row * wide.size(1) + left);
  return on_card(wide, type).slice(1, left, left + C);
}

std::vector<double> doubles(const Tensor& t) { return t.defined() ? to_doubles(t) : std::vector<double>(); }
Tensor part(const Tensor& host, int64_t begin, int64_t end) { return host.slice(0, begin, end).clone(); }

TEST(CausalConv1dCuda, EqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(31);
  for (int trial = 0; trial < 300; ++trial) {
    const Case c(rng, trial % 10 ? 60 : 700);
    const SequenceBatch batch = c.batch();
    const Tensor state = on_card(c.state);
    const Tensor y = causal_conv1d(upload(c.x, c.dtype, rng), on_card(c.weight), on_card(c.bias),
                                   c.activation, batch, state)
                         .to(kCpu);
    const Tensor after = c.state.defined() ? state.to(kCpu) : Tensor();
    std::vector<double> all = c.state.defined() ? to_doubles(c.state) : std::vector<double>();
    const int64_t window_size = (c.K - 1) * c.C;
    for (int64_t b = 0; b < batch.size(); ++b) {
      std::vector<double> window(static_cast<size_t>(window_size), 0.0);
      if (c.state.defined())
        std::copy_n(all.begin() + batch.slot(b) * window_size, window_size, window.begin());
      const auto expected = reference::causal_conv1d(doubles(part(c.x, batch.offset(b), batch.offset(b + 1))),
                                                     doubles(c.weight.clone()), doubles(c.bias), c.activation,
                                                     c.C, c.K, window);
      EXPECT_LT(test::relative_error(part(y, batch.offset(b), batch.offset(b + 1)), expected),
                5e-6 + rounding_of(c.dtype))
          << c.name();
      if (c.state.defined())
        std::copy_n(window.begin(), window_size, all.begin() + batch.slot(b) * window_size);
    }
    if (c.state.defined()) {  // the batch's slots hold the last inputs, the others what they held
      EXPECT_EQ(to_doubles(after), all) << c.name();
    }
  }
}

TEST(CausalConv1dCuda, AnySplitGivesTheSameBits) {
  SSM_NEED_CUDA();
  Rng rng(32);
  for (int trial = 0; trial < 60; ++trial) {
    const Case c(rng, 300);
    const Tensor x = on_card(part(c.x, 0, c.lengths[0]), c.dtype), weight = on_card(c.weight);
    const Tensor bias = on_card(c.bias);
    const Tensor whole = Tensor::zeros({1, c.K - 1, c.C}, DType::f32, kCuda);
    const Tensor parts = Tensor::zeros({1, c.K - 1, c.C}, DType::f32, kCuda);
    const int64_t length = c.lengths[0];
    const Tensor y =
        causal_conv1d(x, weight, bias, c.activation, SequenceBatch::single(length), whole).to(kCpu);
    for (int64_t t = 0; t < length;) {
      const int64_t n = std::min(length - t, 1 + rng.below(rng.below(2) ? 3 : 100));
      const Tensor some =
          causal_conv1d(x.slice(0, t, t + n), weight, bias, c.activation, SequenceBatch::single(n), parts);
      EXPECT_TRUE(same_bits(part(y, t, t + n), some.to(kCpu))) << c.name() << " rows " << t << " + " << n;
      t += n;
    }
    EXPECT_TRUE(same_bits(whole.to(kCpu), parts.to(kCpu))) << c.name();
  }
}

// A captured step reads its slots when it is replayed.
TEST(CausalConv1dCuda, ACapturedStepFollowsItsSlots) {
  SSM_NEED_CUDA();
  Rng rng(33);
  const int64_t B = 3, C = 72, K = 4;
  const Tensor x = test::random_normal({B, C}, rng), weight = test::random_normal({K, C}, rng);
  const Tensor state = test::random_normal({8, K - 1, C}, rng);
  const Tensor card_x = on_card(x), card_weight = on_card(weight).transpose(0, 1);
  const Tensor captured_state = on_card(state), plain_state = on_card(state);
  const Tensor slots = Tensor::zeros({B}, DType::i32).to(kCuda);
  const SequenceBatch captured_batch = SequenceBatch::steps_on_device(slots);
  Arena arena;  // a captured step may not allocate from the driver
  const ArenaScope scope(&arena);
  Tensor captured = Tensor::empty(x.shape(), DType::f32, kCuda);
  captured = Tensor();
  const Graph graph([&] {
    captured = causal_conv1d(card_x, card_weight, {}, Activation::silu, captured_batch, captured_state);
  });
  for (const std::vector<int32_t>& use : {std::vector<int32_t>{2, 7, 0}, std::vector<int32_t>{5, 1, 2}}) {
    copy_bytes(slots.raw(), kCuda, use.data(), kCpu, use.size() * sizeof(int32_t));
    graph.replay();
    const Tensor plain =
        causal_conv1d(card_x, card_weight, {}, Activation::silu, SequenceBatch::steps(use), plain_state);
    EXPECT_TRUE(same_bits(captured.to(kCpu), plain.to(kCpu)));
    EXPECT_TRUE(same_bits(captured_state.to(kCpu), plain_state.to(kCpu)));
  }
}

}  // namespace
}  // namespace ssm
