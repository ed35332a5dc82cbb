// linear_backward on a card against the f64 reference, in every activation type, by the library and without.
//
// Bounds: 2e-6 + 1.5e-7 sqrt(terms) for sums in f32 whose roundings add up as a random walk does. dx is
// rounded to its type; where it is added to, the library rounds the product first and the sum again.
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/ops/linear/linear.h"
#include "ssm/ops/linear/linear_cuda.h"
#include "ssm/ops/linear/linear_reference.h"

namespace ssm {
namespace {

using test::card_error;
using test::on_card;
using test::rounded;
using test::to_doubles;

constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};

struct Case {
  int64_t T, N, K;
  bool round;
  DType dtype;
  Tensor x, w, dy;  // on the host, as the card will see them
  explicit Case(Rng& rng) {
    T = 1 + rng.below(rng.below(3) ? 40 : 1500), N = 1 + rng.below(rng.below(3) ? 90 : 300);
    K = 1 + rng.below(rng.below(3) ? 90 : 300), round = rng.below(2), dtype = kTypes[rng.below(3)];
    if (round) N = (N + 7) / 8 * 8, K = (K + 7) / 8 * 8;
    x = rounded(test::random_normal({T, K}, rng), dtype),
    w = rounded(test::random_normal({N, K}, rng), dtype);
    dy = rounded(test::random_normal({T, N}, rng), dtype);
  }
  // `t` on the card, in half of the cases as columns of a wider tensor.
  Tensor upload(const Tensor& t, DType type, Rng& rng) const {
    return test::columns_on_card(t, type, round ? 8 : 1, rng);
  }
  std::string name() const {
    return fmt::format("T {} N {} K {} {}{}", T, N, K, name_of(dtype), round ? " aligned" : "");
  }
};

std::vector<double> plus(const Tensor& a, std::vector<double> b) {
  const std::vector<double> av = to_doubles(a);
  for (size_t i = 0; i < b.size(); ++i) b[i] += av[i];
  return b;
}

TEST(LinearBackwardCuda, EqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(1);
  for (int trial = 0; trial < 200; ++trial) {
    const Case c(rng);
    const auto expected =
        reference::linear_backward(to_doubles(c.x), to_doubles(c.w), to_doubles(c.dy), c.T, c.N, c.K);
    const Tensor dx0 = rounded(test::random_normal({c.T, c.K}, rng), c.dtype);
    const Tensor dw0 = test::random_normal({c.N, c.K}, rng), db0 = test::random_normal({c.N}, rng);
    const LinearGrads got{c.upload(dx0, c.dtype, rng), rng.below(2) == 1, c.upload(dw0, DType::f32, rng),
                          on_card(db0)};
    linear_backward(c.upload(c.x, c.dtype, rng), Weight{c.upload(c.w, c.dtype, rng)},
                    c.upload(c.dy, c.dtype, rng), got);
    const auto bound = [](int64_t terms) { return 2e-6 + 1.5e-7 * std::sqrt(static_cast<double>(terms)); };
    EXPECT_LT(
        test::relative_error(test::from_card(got.dx), got.dx_adds ? plus(dx0, expected.dx) : expected.dx),
        bound(c.N) + test::rounding_of(c.dtype) * (got.dx_adds ? 2 : 1))
        << c.name();
    EXPECT_LT(test::relative_error(test::from_card(got.dweight), plus(dw0, expected.dweight)), bound(c.T))
        << c.name();
    EXPECT_LT(card_error(got.dbias, plus(db0, expected.dbias)), bound(c.T)) << c.name();
  }
}

TEST(LinearBackwardCuda, PlainTilesEqualTheLibrary) {
  SSM_NEED_CUDA();
  Rng rng(2);
  int taken = 0;
  for (int trial = 0; trial < 60; ++trial) {
    const Case c(rng);
    const Tensor x = c.upload(c.x, c.dtype, rng), w = c.upload(c.w, c.dtype, rng),
                 dy = c.upload(c.dy, c.dtype, rng);
    for (const bool input : {true, false}) {
      const Shape shape = input ? Shape{c.T, c.K} : Shape{c.N, c.K};
      const auto product = [&](const Tensor& to) {
        return input ? cuda::LibraryProduct{.a = dy, .b = w, .c = to}
                     : cuda::LibraryProduct{.a = dy, .a_transposed = true, .b = x, .c = to, .adds = true};
      };
      const Tensor one = Tensor::zeros(shape, DType::f32, kCuda),
                   two = Tensor::zeros(shape, DType::f32, kCuda);
      cuda::any_product(product(one));
      if (!cuda::library_product(product(two))) continue;
      ++taken;
      EXPECT_LT(card_error(one, to_doubles(two.to(kCpu))), 5e-6) << c.name();
    }
  }
  EXPECT_GT(taken, 30);
}

TEST(LinearBackwardCuda, TheSameBitsAgain) {
  SSM_NEED_CUDA();
  Rng rng(3);
  const int64_t T = 2048, N = 80, K = 1536;
  for (const DType dtype : kTypes) {
    const Tensor x = on_card(test::random_normal({T, K}, rng), dtype),
                 dy = on_card(test::random_normal({T, N}, rng), dtype);
    Tensor first[2];
    for (int trial = 0; trial < 3; ++trial) {
      const Tensor dw = Tensor::zeros({N, K}, DType::f32, kCuda), db = Tensor::zeros({N}, DType::f32, kCuda);
      linear_backward(x, Weight{}, dy, {.dweight = dw, .dbias = db});
      const Tensor now[2] = {dw.to(kCpu), db.to(kCpu)};
      if (trial == 0) first[0] = now[0], first[1] = now[1];
      EXPECT_TRUE(test::same_bits(now[0], first[0]) && test::same_bits(now[1], first[1]));
    }
  }
}

}  // namespace
}  // namespace ssm
