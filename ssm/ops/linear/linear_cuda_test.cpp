// linear on a card against the f64 reference, in every activation type, by every way of computing it.
#include "ssm/ops/linear/linear_cuda.h"
#include "ssm/core/graph.h"
#include "ssm/ops/activation/activation_reference.h"
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/ops/linear/linear.h"
#include "ssm/ops/linear/linear_reference.h"
#include "ssm/ops/rms_norm/rms_norm_reference.h"

namespace ssm {
namespace {

// linear_streamed.cu is made for Hopper, and says so of itself; elsewhere there is nothing to test.
#define SSM_NEED_STREAMED_PRODUCTS() \
  if (!cuda::has_streamed_products()) GTEST_SKIP() << "the card is not of compute capability 9.0"

struct Case {
  int64_t T, N, K;
  DType dtype, result;
  Tensor x, w, bias;  // on the host, as the card will see them
  Case(Rng& rng, int64_t most_rows, bool round) {
    T = 1 + rng.below(most_rows), N = 1 + rng.below(rng.below(3) ? 100 : 700);
    K = 1 + rng.below(T > 40 || rng.below(4) ? 300 : 6000);
    if (round) N = (N + 7) / 8 * 8, K = (K + 7) / 8 * 8;
    dtype = kTypes[rng.below(3)], result = rng.below(2) ? dtype : DType::f32;
    x = rounded(test::random_normal({T, K}, rng), dtype);
    w = rounded(test::random_normal({N, K}, rng), dtype);
    if (rng.below(2)) bias = test::random_normal({N}, rng, 10.0f);
  }
  // `t` on the card, in half of the cases as columns of a wider tensor, whose rows may start anywhere.
  Tensor upload(const Tensor& t, bool round, Rng& rng) const {
    return test::columns_on_card(t, dtype, round ? 8 : 1, rng);
  }
  std::vector<double> expected() const {
    return reference::linear(to_doubles(x), to_doubles(w),
                             bias.defined() ? to_doubles(bias) : std::vector<double>{}, T, N, K);
  }
  // Sums of K products in f32; the result is rounded, and the library adds a bias that was rounded to it.
  double bound() const {
    return 2e-6 + 1e-9 * static_cast<double>(K) +
           rounding_of(result) * (bias.defined() && result != DType::f32 ? 2 : 1);
  }
  std::string name() const {
    return fmt::format("T {} N {} K {} {} to {}{}", T, N, K, name_of(dtype), name_of(result),
                       bias.defined() ? " with a bias" : "");
  }
};

TEST(LinearCuda, EqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(31);
  for (int trial = 0; trial < 300; ++trial) {
    const bool round = rng.below(2);
    const Case c(rng, rng.below(3) ? 40 : 300, round);
    const Tensor y = linear(c.upload(c.x, round, rng), Weight{c.upload(c.w, round, rng)}, on_card(c.bias),
                            c.dtype, c.result);
    EXPECT_LT(card_error(y, c.expected()), c.bound()) << c.name();
  }
}

TEST(LinearCuda, EveryWayEqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(32);
  int taken[4] = {};
  for (int trial = 0; trial < 150; ++trial) {
    const bool round = rng.below(3) != 0;
    const Case c(rng, rng.below(2) ? 32 : 140, round);
    const auto expected = c.expected();
    const Tensor x = c.upload(c.x, round, rng), w = c.upload(c.w, round, rng), bias = on_card(c.bias);
    for (int way = 0; way < 4; ++way) {
      const Tensor y = Tensor::empty({c.T, c.N}, c.result, kCuda);
      cuda::linear_any(x, w, bias, y);  // so that what a way leaves out is not there by luck
      const Tensor poison = test::random_normal(y.shape(), rng, 1e4f).to(c.result);
      copy_bytes(y.raw(), kCuda, poison.raw(), kCpu, y.bytes());
      if (way == 0 && !cuda::linear_few_rows(x, w, bias, y)) continue;
      if (way == 1 && !cuda::linear_library(x, w, bias, y)) continue;
      if (way == 2) cuda::linear_any(x, w, bias, y);
      if (way == 3 && !cuda::linear_streamed(x, w, bias, y)) continue;
      ++taken[way];
      EXPECT_LT(card_error(y, expected), c.bound()) << c.name() << " way " << way;
    }
  }
  EXPECT_GT(taken[0], 30);
  EXPECT_GT(taken[1], 50);
  EXPECT_GT(taken[3], cuda::has_streamed_products() ? 20 : -1);
}

// Shapes of models: every width of its blocks, K shared out and not, one warp group and two.
TEST(LinearCuda, StreamedEqualsTheReference) {
  SSM_NEED_CUDA();
  SSM_NEED_STREAMED_PRODUCTS();
  Rng rng(36);
  for (const auto& [N, K] : {std::pair<int64_t, int64_t>{10240, 320},
                             {2560, 5120},
                             {7680, 200},
                             {768, 1536},
                             {3072, 768},
                             {80, 1536},
                             {1536, 48},
                             {10576, 72},
                             {24, 2056},
                             {8, 8},
                             {4104, 640}}) {
    for (int trial = 0; trial < 4; ++trial) {
      const int64_t T = trial == 0 ? 64 : trial == 1 ? 128 : 1 + rng.below(128);
      const DType dtype = rng.below(2) ? DType::bf16 : DType::f16;
      const Tensor x = rounded(test::random_normal({T, K}, rng), dtype),
                   w = rounded(test::random_normal({N, K}, rng), dtype);
      const Tensor bias = rng.below(2) ? test::random_normal({N}, rng, 10.0f) : Tensor{};
      const auto expected = reference::linear(
          to_doubles(x), to_doubles(w), bias.defined() ? to_doubles(bias) : std::vector<double>{}, T, N, K);
      const Tensor before = test::random_normal({T, N}, rng, 10.0f), residual = on_card(before);
      const Tensor y = Tensor::empty({T, N}, dtype, kCuda);
      const Tensor x_there = test::columns_on_card(x, dtype, 8, rng),
                   w_there = test::columns_on_card(w, dtype, 8, rng);
      const std::string name = fmt::format("T {} N {} K {} {}", T, N, K, name_of(dtype));
      ASSERT_TRUE(cuda::linear_streamed(x_there, w_there, on_card(bias), y)) << name;
      EXPECT_LT(card_error(y, expected), 2e-6 + 1e-9 * static_cast<double>(K) + rounding_of(dtype)) << name;
      ASSERT_TRUE(cuda::linear_add_streamed(x_there, w_there, on_card(bias), residual)) << name;
      std::vector<double> sum = expected;
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += before.data<float>()[i];
      EXPECT_LT(card_error(residual, sum), 3e-6 + 1e-9 * static_cast<double>(K)) << name;
    }
  }
}

// Two products of one kernel: K of one length and of two, blocks of a cluster that share K out and not.
TEST(LinearCuda, TwoAtOnceEqualTheReference) {
  SSM_NEED_CUDA();
  SSM_NEED_STREAMED_PRODUCTS();
  Rng rng(37);
  struct Sizes {
    int64_t N1, K1, N2, K2;
  };
  for (const Sizes& s : {Sizes{7680, 320, 10240, 320},
                         {2304, 768, 3072, 768},
                         {768, 768, 768, 3072},
                         {2560, 256, 2560, 1024},
                         {6144, 200, 8192, 72},
                         {24, 600, 24, 72},
                         {8, 8, 72, 16},
                         {80, 2056, 80, 8}}) {
    for (int trial = 0; trial < 4; ++trial) {
      const int64_t T = trial == 0 ? 64 : 9 + rng.below(56);
      const DType dtype = rng.below(2) ? DType::bf16 : DType::f16;
      const auto name = fmt::format("T {} N {} {} K {} {} {}", T, s.N1, s.N2, s.K1, s.K2, name_of(dtype));
      const double bound = 3e-6 + 1e-9 * static_cast<double>(s.K1 + s.K2);
      std::vector<double> expected[2];
      LinearOperands of[2];
      for (int i = 0; i < 2; ++i) {
        const int64_t N = i ? s.N2 : s.N1, K = i ? s.K2 : s.K1;
        const Tensor x = rounded(test::random_normal({T, K}, rng), dtype),
                     w = rounded(test::random_normal({N, K}, rng), dtype);
        const Tensor bias = rng.below(2) ? test::random_normal({N}, rng, 10.0f) : Tensor{};
        expected[i] = reference::linear(to_doubles(x), to_doubles(w),
                                        bias.defined() ? to_doubles(bias) : std::vector<double>{}, T, N, K);
        of[i] = {test::columns_on_card(x, dtype, 8, rng), test::columns_on_card(w, dtype, 8, rng),
                 on_card(bias)};
      }
      if (s.N1 == s.N2) {
        ASSERT_TRUE(has_linear_add_both(of[0], of[1])) << name;
        const Tensor before = test::random_normal({T, s.N1}, rng, 10.0f), residual = on_card(before);
        linear_add_both(of[0], of[1], residual);
        std::vector<double> sum = expected[0];
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += expected[1][i] + before.data<float>()[i];
        EXPECT_LT(card_error(residual, sum), bound) << name;
      }
      ASSERT_TRUE(has_linear_beside(of[0], of[1])) << name;
      const auto [y1, y2] = linear_beside(of[0], of[1]);
      EXPECT_LT(card_error(y1, expected[0]), bound + rounding_of(dtype)) << name;
      for (double& v : expected[1]) v = reference::gelu(v);
      EXPECT_LT(card_error(y2, expected[1]), bound + rounding_of(dtype)) << name;
    }
  }
  const LinearOperands large{
      Tensor::zeros({16, 4096}, DType::bf16, kCuda), Tensor::zeros({32768, 4096}, DType::bf16, kCuda), {}};
  EXPECT_FALSE(has_linear_beside(large, large));
  EXPECT_THROW(linear_beside(large, large), Error);
}

// The norm between two products: what the first leaves, and the second's rows.
TEST(LinearCuda, ANormBetweenProductsEqualsTheReference) {
  SSM_NEED_CUDA();
  SSM_NEED_STREAMED_PRODUCTS();
  Rng rng(38);
  struct Sizes {
    int64_t K, M, N;
  };
  for (const Sizes& s : {Sizes{1536, 768, 3072},
                         {5120, 2560, 10240},
                         {72, 8, 24},
                         {64, 520, 80},
                         {2048, 1024, 4096},
                         {640, 4104, 640}}) {
    for (int trial = 0; trial < 4; ++trial) {
      const bool large = s.M * std::min(s.K, s.N) >= 8 << 20;
      const int64_t T = trial == 0 ? 64 : large ? 9 + rng.below(56) : 17 + rng.below(112);
      const auto matrix = [&](int64_t rows, int64_t columns) {
        return rounded(test::random_normal({rows, columns}, rng, 1 / std::sqrt(static_cast<float>(columns))),
                       DType::bf16);
      };
      const Tensor x = rounded(test::random_normal({T, s.K}, rng), DType::bf16), w = matrix(s.M, s.K),
                   next = matrix(s.N, s.M), weight = test::random_normal({s.M}, rng, 0.3f, 1.0f),
                   before = test::random_normal({T, s.M}, rng, 3.0f), residual = on_card(before);
      const Tensor bias = rng.below(2) ? test::random_normal({s.M}, rng) : Tensor{};
      const Tensor next_bias = rng.below(2) ? test::random_normal({s.N}, rng) : Tensor{};
      const auto name = fmt::format("T {} K {} M {} N {}", T, s.K, s.M, s.N);
      const auto there = [&](const Tensor& t) { return test::columns_on_card(t, DType::bf16, 8, rng); };
      const Weight first{there(w)}, second{there(next)};
      ASSERT_TRUE(has_linear_of_norm(T, first) && has_linear_of_norm(T, second)) << name;
      const UndividedNorm left =
          linear_add_norm({there(x), first, on_card(bias)}, residual, on_card(weight), 1e-5f);
      std::vector<double> sum =
          reference::linear(to_doubles(x), to_doubles(w),
                            bias.defined() ? to_doubles(bias) : std::vector<double>{}, T, s.M, s.K);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += before.data<float>()[i];
      EXPECT_LT(card_error(residual, sum), 3e-6 + 1e-9 * static_cast<double>(s.K)) << name;
      const auto normed = reference::rms_norm(sum, to_doubles(weight), s.M, 1, 1e-5);
      const auto expected =
          reference::linear(normed, to_doubles(next),
                            next_bias.defined() ? to_doubles(next_bias) : std::vector<double>{}, T, s.N, s.M);
      const Tensor y = linear_of_norm(left, second, on_card(next_bias));
      EXPECT_LT(card_error(y, expected), 3 * rounding_of(DType::bf16)) << name;
    }
  }
  const Weight f16{Tensor::zeros({64, 64}, DType::f16, kCuda)},
      f32{Tensor::zeros({64, 64}, DType::f32, kCuda)};
  EXPECT_FALSE(has_linear_of_norm(32, f16) || has_linear_of_norm(32, f32));
  EXPECT_FALSE(has_linear_of_norm(16, Weight{Tensor::zeros({64, 64}, DType::bf16, kCuda)}));
}

TEST(LinearCuda, AddsToAResidual) {
  SSM_NEED_CUDA();
  Rng rng(35);
  for (int trial = 0; trial < 200; ++trial) {
    const bool round = rng.below(4) != 0;
    const Case c(rng, rng.below(2) ? 40 : 200, round);
    const Tensor before = test::random_normal({c.T, c.N}, rng, 10.0f), residual = on_card(before);
    const Weight w{c.upload(c.w, round, rng)};
    ASSERT_TRUE(has_linear_add(c.T, w));
    linear_add(c.upload(c.x, round, rng), w, on_card(c.bias), residual);
    std::vector<double> expected = c.expected();
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += before.data<float>()[i];
    EXPECT_LT(card_error(residual, expected), 3e-6 + 1e-9 * static_cast<double>(c.K)) << c.name();
  }
}

TEST(LinearCuda, ARowDoesNotDependOnTheRowsBesideIt) {
  SSM_NEED_CUDA();
  Rng rng(33);
  for (int trial = 0; trial < 30; ++trial) {
    const Case c(rng, 8, true);
    const Tensor x = on_card(c.x, c.dtype), w = on_card(c.w, c.dtype);
    const Tensor whole = linear(x, Weight{w}, {}, c.dtype).to(kCpu);
    const Tensor first = linear(x.slice(0, 0, 1), Weight{w}, {}, c.dtype).to(kCpu);
    EXPECT_TRUE(same_bits(first, whole.slice(0, 0, 1))) << c.name();
  }
}

TEST(LinearCuda, ACapturedProductReadsWhatItsOperandsThenHold) {
  SSM_NEED_CUDA();
  Rng rng(34);
  for (const int64_t T : {1, 5, 16, 64, 100}) {
    const int64_t N = 80, K = 1536;
    for (const DType dtype : kTypes) {
      const Tensor x = on_card(test::random_normal({T, K}, rng), dtype);
      const Weight w{on_card(test::random_normal({N, K}, rng), dtype)};
      const Tensor v = on_card(test::random_normal({48, N}, rng), dtype);
      Tensor y, z;
      auto body = [&] {
        y = linear(x, w, {}, dtype);
        z = linear(y, Weight{v}, {}, dtype);
      };
      body();
      synchronize(kCuda);
      Arena arena;
      const ArenaScope scope(&arena);
      body();
      y = z = {};
      const Graph graph(body);
      for (int trial = 0; trial < 3; ++trial) {
        const Tensor fresh = test::random_normal({T, K}, rng).to(dtype);
        copy_bytes(x.raw(), kCuda, fresh.raw(), kCpu, x.bytes());
        graph.replay();
        const Tensor captured = z.to(kCpu);
        const Tensor again = linear(linear(x, w, {}, dtype), Weight{v}, {}, dtype).to(kCpu);
        EXPECT_TRUE(same_bits(captured, again)) << T << " " << name_of(dtype);
      }
    }
  }
}

}  // namespace
}  // namespace ssm
