// The activations and their backwards on a card against the f64 reference, in every type.
#include "ssm/autograd/tape.h"
#include "ssm/core/graph.h"
#include "ssm/ops/activation/activation.h"
#include "ssm/ops/activation/activation_reference.h"
#include "ssm/ops/cuda/test_cuda.h"

namespace ssm {
namespace {

using Doubles = std::vector<double>;

// Of the functions themselves, in f32.
constexpr double kBound = 3e-6;

struct Case {
  int64_t T, M;
  DType dtype;
  Tensor x, z, dy;  // on the host, as the card will see them
  explicit Case(Rng& rng) {
    T = rng.below(20) ? 1 + rng.below(30) : 33000 + rng.below(3000);
    M = T > 1000 ? 1 + rng.below(12) : rng.below(2) ? 8 * (1 + rng.below(200)) : 1 + rng.below(1500);
    dtype = kTypes[rng.below(3)];
    x = rounded(test::random_normal({T, M}, rng, 3.0f), dtype);
    z = rounded(test::random_normal({T, M}, rng, 3.0f), dtype);
    dy = rounded(test::random_normal({T, M}, rng), dtype);
  }
  Tensor upload(const Tensor& t, Rng& rng) const {
    return test::columns_on_card(t, dtype, rng.below(2) ? 8 : 1, rng);
  }
  // A result's memory, of a wider tensor as well.
  Tensor result(Rng& rng) const { return upload(x, rng); }
  double bound() const { return kBound + rounding_of(dtype); }
  std::string name() const { return fmt::format("T {} M {} {}", T, M, name_of(dtype)); }
};

// f(x, z, dy), element by element.
template <class F>
Doubles each(const Case& c, const F& f) {
  const Doubles x = to_doubles(c.x), z = to_doubles(c.z), dy = to_doubles(c.dy);
  Doubles y(x.size());
  for (size_t i = 0; i < y.size(); ++i) y[i] = f(x[i], z[i], dy[i]);
  return y;
}

Doubles gelus(const Case& c) {
  return each(c, [](double x, double, double) { return reference::gelu(x); });
}
Doubles gated(const Case& c) {
  return each(c, [](double x, double z, double) { return reference::gated_silu(x, z); });
}
Doubles gelu_gradient(const Case& c) {
  return each(c, [](double x, double, double dy) { return dy * reference::gelu_slope(x); });
}
Doubles dx_of(const Case& c) {
  return each(c, [](double, double z, double dy) { return reference::gated_silu(dy, z); });
}
Doubles dz_of(const Case& c) {
  return each(c, [](double x, double z, double dy) { return dy * x * reference::silu_slope(z); });
}

double error_of(const Tensor& t, const Doubles& expected) {
  return test::relative_error(test::from_card(t), expected);
}

TEST(ActivationCuda, EqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(41);
  for (int trial = 0; trial < 150; ++trial) {
    const Case c(rng);
    EXPECT_LT(card_error(gelu(c.upload(c.x, rng)), gelus(c)), c.bound()) << c.name();
    EXPECT_LT(card_error(gated_silu(c.upload(c.x, rng), c.upload(c.z, rng)), gated(c)), c.bound())
        << c.name();
  }
}

TEST(ActivationCuda, GeluIsAccurateInItsTails) {
  SSM_NEED_CUDA();
  const float values[] = {-12.0f, -6.0f, -3.0f, -1e-3f, 0.0f, 1e-3f, 0.5f, 3.0f, 6.0f, 30.0f, 1e4f, -1e4f};
  const Tensor y = gelu(on_card(Tensor::from_values<float>(values, {1, 12}))).to(kCpu);
  for (size_t i = 0; i < 12; ++i) {
    const double exact = reference::gelu(static_cast<double>(values[i]));
    EXPECT_NEAR(y.data<float>()[i], exact, 2e-5 * std::abs(exact) + 1e-30) << values[i];
  }
}

TEST(ActivationCuda, FarValuesStayFinite) {
  SSM_NEED_CUDA();
  const float values[] = {-1e30f, -1e4f, -200.0f, -89.0f, 89.0f, 200.0f, 1e4f, 1e30f};
  const Tensor z = on_card(Tensor::from_values<float>(values, {1, 8}));
  const Tensor one = on_card(Tensor::from_values<float>(std::vector<float>(8, 1.0f), {1, 8}));
  const Tensor gelu_dx = Tensor::empty({1, 8}, DType::f32, kCuda),
               dx = Tensor::empty({1, 8}, DType::f32, kCuda), dz = Tensor::empty({1, 8}, DType::f32, kCuda);
  gelu_backward(z, one, gelu_dx);
  gated_silu_backward(one, z, one, dx, dz);
  const Doubles y = to_doubles(gelu(z).to(kCpu)), gate = to_doubles(gated_silu(one, z).to(kCpu)),
                slope = to_doubles(gelu_dx.to(kCpu)), silu = to_doubles(dx.to(kCpu)),
                silu_slope = to_doubles(dz.to(kCpu));
  for (size_t i = 0; i < 8; ++i) {
    const bool up = values[i] > 0;
    const double value = up ? static_cast<double>(values[i]) : 0;
    EXPECT_NEAR(y[i], value, 1e-6 * value + 1e-30) << values[i];
    EXPECT_NEAR(gate[i], value, 1e-6 * value + 1e-30) << values[i];
    EXPECT_NEAR(silu[i], value, 1e-6 * value + 1e-30) << values[i];
    EXPECT_NEAR(slope[i], up ? 1 : 0, 1e-6) << values[i];
    EXPECT_NEAR(silu_slope[i], up ? 1 : 0, 1e-6) << values[i];
  }
}

TEST(ActivationCuda, ARowIsTheSameAloneAndInAGraph) {
  SSM_NEED_CUDA();
  Rng rng(42);
  const int64_t T = 40, F = 1000;
  const Tensor h = on_card(test::random_normal({T, 2 * F}, rng), DType::bf16);
  const auto both = [&](const Tensor& of) {
    return std::pair(gated_silu(of.slice(1, 0, F), of.slice(1, F, 2 * F)), gelu(of));
  };
  const auto [gate, all] = both(h);
  const auto [gate_row, row] = both(h.slice(0, 7, 8));
  EXPECT_TRUE(same_bits(gate_row.to(kCpu), gate.to(kCpu).slice(0, 7, 8)));
  EXPECT_TRUE(same_bits(row.to(kCpu), all.to(kCpu).slice(0, 7, 8)));
  Arena arena;
  const ArenaScope scope(&arena);
  both(h);
  std::pair<Tensor, Tensor> captured;
  const Graph graph([&] { captured = both(h); });
  graph.replay();
  EXPECT_TRUE(same_bits(captured.first.to(kCpu), gate.to(kCpu)));
  EXPECT_TRUE(same_bits(captured.second.to(kCpu), all.to(kCpu)));
}

TEST(ActivationBackwardCuda, EqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(43);
  for (int trial = 0; trial < 150; ++trial) {
    const Case c(rng);
    const Tensor x = c.upload(c.x, rng), z = c.upload(c.z, rng), dy = c.upload(c.dy, rng);
    const Tensor of_gelu = c.result(rng), dx = rng.below(4) ? c.result(rng) : Tensor(),
                 dz = rng.below(4) ? c.result(rng) : Tensor();
    gelu_backward(x, dy, of_gelu);
    EXPECT_LT(error_of(of_gelu, gelu_gradient(c)), c.bound()) << c.name();
    gated_silu_backward(x, z, dy, dx, dz);
    if (dx.defined()) {
      EXPECT_LT(error_of(dx, dx_of(c)), c.bound()) << c.name();
    }
    if (dz.defined()) {
      EXPECT_LT(error_of(dz, dz_of(c)), c.bound()) << c.name();
    }
  }
}

// As an MLP has them: the halves of one matrix, whose gradient gets its columns from each.
TEST(ActivationBackwardCuda, TheTapeEqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(44);
  for (int trial = 0; trial < 40; ++trial) {
    const Case c(rng);
    Tensor wide = Tensor::empty({c.T, 2 * c.M});
    for (int64_t t = 0; t < c.T; ++t) {
      std::copy_n(c.x.data<float>() + t * c.M, c.M, wide.data<float>() + 2 * t * c.M);
      std::copy_n(c.z.data<float>() + t * c.M, c.M, wide.data<float>() + (2 * t + 1) * c.M);
    }
    Tensor h = on_card(wide, c.dtype), x = on_card(c.x, c.dtype);
    watch(h, c.dtype), watch(x, c.dtype);
    Tape tape;
    Tensor gate, y;
    {
      const RecordScope recording(&tape);
      gate = gated_silu(h.slice(1, 0, c.M), h.slice(1, c.M, 2 * c.M));
      y = gelu(x);
    }
    gradient_hand_over(gate, on_card(c.dy, c.dtype));
    gradient_hand_over(y, on_card(c.dy, c.dtype));
    tape.backward();
    const Tensor dh = gradient_of(h).to(kCpu);
    EXPECT_LT(test::relative_error(dh.slice(1, 0, c.M), dx_of(c)), c.bound()) << c.name();
    EXPECT_LT(test::relative_error(dh.slice(1, c.M, 2 * c.M), dz_of(c)), c.bound()) << c.name();
    EXPECT_LT(card_error(gradient_of(x), gelu_gradient(c)), c.bound()) << c.name();
  }
}

}  // namespace
}  // namespace ssm
