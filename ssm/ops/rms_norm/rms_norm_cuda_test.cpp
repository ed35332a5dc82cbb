// rms_norm on a card against the f64 reference, in every activation type.
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/ops/rms_norm/rms_norm.h"
#include "ssm/ops/rms_norm/rms_norm_reference.h"

namespace ssm {
namespace {

struct Case {
  int64_t T, M, groups;
  DType dtype, result;
  Tensor x, z, residual, weight;  // on the host, x and z as the card will see them
  float eps;
  explicit Case(Rng& rng) {
    const int64_t most = rng.below(4) ? 300 : 9000;
    const int64_t part = rng.below(2) ? 8 * (1 + rng.below(most / 8)) : 1 + rng.below(most);
    groups = 1 + rng.below(4), T = 1 + rng.below(20), M = part * groups;
    dtype = kTypes[rng.below(3)], result = rng.below(2) ? dtype : DType::f32;
    x = rounded(test::random_normal({T, M}, rng, 2.0f), dtype);
    z = rounded(test::random_normal({T, M}, rng, 2.0f), dtype);
    residual = test::random_normal({T, M}, rng, 2.0f);
    if (rng.below(3)) weight = test::random_normal({M}, rng, 0.3f, 1.0f);
    eps = rng.below(2) ? 1e-5f : 0.1f;
  }
  // `t` on the card, in half of the cases as columns of a wider tensor.
  Tensor upload(const Tensor& t, DType type, Rng& rng) const {
    const int64_t left = rng.below(2) ? rng.below(9) : 8 * rng.below(2);
    const Tensor wide = test::random_normal({T, left + M}, rng, 1e6f);
    for (int64_t row = 0; row < T; ++row)
      std::copy_n(t.data<float>() + row * M, M, wide.data<float>() + row * (left + M) + left);
    return on_card(wide, type).slice(1, left, left + M);
  }
  std::vector<double> weights() const {
    return weight.defined() ? to_doubles(weight) : std::vector<double>();
  }
  double bound() const { return 5e-6 + rounding_of(result); }
  std::string name() const {
    return fmt::format("T {} M {} groups {} {} to {}", T, M, groups, name_of(dtype), name_of(result));
  }
};

TEST(RmsNormCuda, EqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(21);
  for (int trial = 0; trial < 200; ++trial) {
    const Case c(rng);
    const Tensor y = rms_norm(c.upload(c.x, c.dtype, rng), on_card(c.weight), c.eps, c.result);
    const auto expected = reference::rms_norm<double>(to_doubles(c.x), c.weights(), c.M, 1, c.eps);
    EXPECT_LT(card_error(y, expected), c.bound()) << c.name();
  }
}

TEST(RmsNormCuda, AddUpdatesTheResidual) {
  SSM_NEED_CUDA();
  Rng rng(22);
  for (int trial = 0; trial < 200; ++trial) {
    const Case c(rng);
    Tensor residual = on_card(c.residual);
    auto sum = to_doubles(c.residual);
    const auto expected = reference::add_rms_norm<double>(to_doubles(c.x), sum, c.weights(), c.M, c.eps);
    const Tensor y = add_rms_norm(c.upload(c.x, c.dtype, rng), residual, on_card(c.weight), c.eps, c.result);
    EXPECT_LT(card_error(y, expected), c.bound()) << c.name();
    EXPECT_LT(card_error(residual, sum), 5e-6) << c.name();
  }
}

TEST(RmsNormCuda, GatedNormsEachGroup) {
  SSM_NEED_CUDA();
  Rng rng(23);
  for (int trial = 0; trial < 200; ++trial) {
    const Case c(rng);
    const Tensor y = gated_rms_norm(c.upload(c.x, c.dtype, rng), c.upload(c.z, c.dtype, rng),
                                    on_card(c.weight), c.groups, c.eps);
    const auto expected = reference::gated_rms_norm<double>(to_doubles(c.x), to_doubles(c.z), c.weights(),
                                                            c.M, c.groups, c.eps);
    EXPECT_LT(card_error(y, expected), 5e-6 + rounding_of(c.dtype)) << c.name();
  }
}

}  // namespace
}  // namespace ssm
