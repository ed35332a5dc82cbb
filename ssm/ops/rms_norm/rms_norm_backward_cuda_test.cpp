// The norms' backwards on a card against the f64 reference, in every activation type.
//
// Bounds: 1e-5 as on the CPU, and the rounding of the result. Sums over rows are f32: 1e-5.
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/ops/rms_norm/rms_norm.h"
#include "ssm/ops/rms_norm/rms_norm_reference.h"

namespace ssm {
namespace {

using Doubles = std::vector<double>;
using test::card_error;
using test::on_card;
using test::rounded;
using test::to_doubles;

constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};
constexpr double kBound = 1e-5;

struct Case {
  int64_t T, M, groups;
  DType dtype;
  Tensor x, z, residual, dy, above, weight;  // on the host, as the card will see them
  float eps;
  explicit Case(Rng& rng) {
    int64_t part = 8 + rng.below(rng.below(4) ? 300 : 8500);
    if (rng.below(2)) part = part / 8 * 8;
    groups = 1 + rng.below(3),
    T = 1 + rng.below(part > 1000    ? 20
                      : rng.below(8) ? 60
                                     : 2500),
    M = part * groups;
    if (T > 1000) T = 1000 + rng.below(1200);
    dtype = kTypes[rng.below(3)];
    const auto tensor = [&](DType type, float scale) {
      return rounded(test::random_normal({T, M}, rng, scale), type);
    };
    x = tensor(dtype, 2), z = tensor(dtype, 2), dy = tensor(dtype, 1);
    residual = tensor(DType::f32, 2), above = tensor(DType::f32, 1);
    if (rng.below(3)) weight = test::random_normal({M}, rng, 0.3f, 1.0f);
    eps = rng.below(2) ? 1e-5f : 0.1f;
  }
  Tensor upload(const Tensor& t, DType type, Rng& rng) const {
    const int64_t left = rng.below(2) ? rng.below(9) : 0;
    const Tensor wide = test::random_normal({T, left + M}, rng, 1e6f);
    for (int64_t row = 0; row < T; ++row)
      std::copy_n(t.data<float>() + row * M, M, wide.data<float>() + row * (left + M) + left);
    return on_card(wide, type).slice(1, left, left + M);
  }
  Doubles weights() const { return weight.defined() ? to_doubles(weight) : Doubles(); }
  double bound() const { return kBound + test::rounding_of(dtype); }
  std::string name() const { return fmt::format("T {} M {} groups {} {}", T, M, groups, name_of(dtype)); }
};

TEST(RmsNormBackwardCuda, EqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(1);
  for (int trial = 0; trial < 100; ++trial) {
    const Case c(rng);
    const Tensor dw0 = test::random_normal({c.M}, rng), weight = on_card(c.weight), dw = on_card(dw0);
    const Tensor dx = Tensor::empty({c.T, c.M}, c.dtype, kCuda),
                 dz = Tensor::empty({c.T, c.M}, c.dtype, kCuda);
    const auto expect_dweight = [&](const char* what, Doubles expected) {
      for (size_t i = 0; i < expected.size(); ++i) expected[i] += static_cast<double>(dw0.data<float>()[i]);
      EXPECT_LT(card_error(dw, expected), kBound) << what << " " << c.name();
      copy_bytes(dw.raw(), kCuda, dw0.raw(), kCpu, dw.bytes());
    };
    const auto plain = reference::rms_norm_backward<double>(to_doubles(c.x), {}, c.weights(),
                                                            to_doubles(c.dy), c.M, 1, c.eps);
    rms_norm_backward(c.upload(c.x, c.dtype, rng), weight, c.eps, c.upload(c.dy, c.dtype, rng), dx, dw);
    EXPECT_LT(card_error(dx, plain.dx), c.bound()) << c.name();
    expect_dweight("plain", plain.dweight);

    auto added = reference::rms_norm_backward<double>(to_doubles(c.residual), {}, c.weights(),
                                                      to_doubles(c.dy), c.M, 1, c.eps);
    const Doubles above = to_doubles(c.above);
    for (size_t i = 0; i < above.size(); ++i) added.dx[i] += above[i];
    const Tensor dresidual = on_card(c.above);
    add_rms_norm_backward(c.upload(c.residual, DType::f32, rng), weight, c.eps, c.upload(c.dy, c.dtype, rng),
                          dresidual, dx, dw);
    EXPECT_LT(card_error(dresidual, added.dx), kBound) << c.name();
    EXPECT_LT(card_error(dx, added.dx), c.bound()) << c.name();
    expect_dweight("added", added.dweight);

    const auto gated = reference::rms_norm_backward<double>(to_doubles(c.x), to_doubles(c.z), c.weights(),
                                                            to_doubles(c.dy), c.M, c.groups, c.eps);
    gated_rms_norm_backward(c.upload(c.x, c.dtype, rng), c.upload(c.z, c.dtype, rng), weight, c.groups, c.eps,
                            c.upload(c.dy, c.dtype, rng), dx, dz, dw);
    EXPECT_LT(card_error(dx, gated.dx), c.bound()) << c.name();
    EXPECT_LT(card_error(dz, gated.dz), c.bound()) << c.name();
    expect_dweight("gated", gated.dweight);
  }
}

TEST(RmsNormBackwardCuda, TheSameBitsAgainAndARowWhateverTheBatch) {
  SSM_NEED_CUDA();
  Rng rng(2);
  const int64_t T = 2500, M = 768;
  const Tensor x = on_card(test::random_normal({T, M}, rng), DType::bf16),
               dy = on_card(test::random_normal({T, M}, rng), DType::bf16);
  Tensor dx0, dw0;
  for (int trial = 0; trial < 2; ++trial) {
    const Tensor dx = Tensor::empty({T, M}, DType::bf16, kCuda), dw = Tensor::zeros({M}, DType::f32, kCuda);
    rms_norm_backward(x, {}, 1e-5f, dy, dx, dw);
    if (trial == 0) dx0 = dx.to(kCpu), dw0 = dw.to(kCpu);
    EXPECT_TRUE(test::same_bits(dx.to(kCpu), dx0) && test::same_bits(dw.to(kCpu), dw0));
  }
  const Tensor row = Tensor::empty({1, M}, DType::bf16, kCuda);
  rms_norm_backward(x.slice(0, 2100, 2101), {}, 1e-5f, dy.slice(0, 2100, 2101), row, {});
  EXPECT_TRUE(test::same_bits(row.to(kCpu), dx0.slice(0, 2100, 2101)));
}

}  // namespace
}  // namespace ssm
