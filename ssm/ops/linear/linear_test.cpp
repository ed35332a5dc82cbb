#include "ssm/ops/linear/linear.h"

#include <gtest/gtest.h>

#include "ssm/core/parallel.h"
#include "ssm/ops/linear/linear_reference.h"
#include "ssm/ops/simd/test_targets.h"
#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

struct Case {
  int64_t T, N, K;
};

Case random_case(Rng& rng) { return {1 + rng.below(40), 1 + rng.below(80), 1 + rng.below(200)}; }

std::vector<double> expected(const Tensor& x, const Tensor& w, const Tensor& bias) {
  return reference::linear(test::to_doubles(x), test::to_doubles(w),
                           bias.defined() ? test::to_doubles(bias) : std::vector<double>{}, x.size(0),
                           w.size(0), w.size(1));
}

TEST(Linear, EqualsTheReferenceOnEveryTarget) {
  Rng rng(2);
  test::for_each_target([&] {
    for (int trial = 0; trial < 150; ++trial) {
      const auto [T, N, K] = random_case(rng);
      for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        const Tensor x = test::random_normal({T, K}, rng), w = test::random_normal({N, K}, rng).to(dtype);
        const Tensor bias = rng.below(2) ? test::random_normal({N}, rng) : Tensor{};
        EXPECT_LT(test::relative_error(linear(x, Weight{w}, bias), expected(x, w, bias)), 3e-6)
            << T << " x " << N << " x " << K << " " << name_of(dtype);
      }
    }
  });
}

TEST(Linear, RoundsActivationsToTheComputeType) {
  Rng rng(3);
  test::for_each_target_and_extension([&] {
    for (int trial = 0; trial < 200; ++trial) {
      const auto [T, N, K] = random_case(rng);
      for (const DType compute : {DType::bf16, DType::f16}) {
        for (const DType dtype : {DType::f32, compute}) {
          const Tensor x = test::random_normal({T, K}, rng), w = test::random_normal({N, K}, rng).to(dtype);
          EXPECT_LT(test::relative_error(linear(x, Weight{w}, {}, compute), expected(x.to(compute), w, {})),
                    3e-6)
              << T << " x " << N << " x " << K << " " << name_of(compute) << " on " << name_of(dtype);
        }
      }
    }
  });
}

TEST(Linear, ManyRowsInBf16EqualTheReference) {
  Rng rng(6);
  test::for_each_target_and_extension([&] {
    for (int trial = 0; trial < 60; ++trial) {
      const int64_t T = 90 + rng.below(60), N = 1 + rng.below(100), K = 1 + rng.below(120);
      const Tensor x = test::random_normal({T, K}, rng), w = test::random_normal({N, K}, rng).to(DType::bf16);
      const Tensor bias = rng.below(2) ? test::random_normal({N}, rng) : Tensor{};
      EXPECT_LT(
          test::relative_error(linear(x, Weight{w}, bias, DType::bf16), expected(x.to(DType::bf16), w, bias)),
          3e-6)
          << T << " x " << N << " x " << K;
    }
  });
}

TEST(Linear, ARowIsBitEqualWhateverTheBatchAndTheThreads) {
  Rng rng(4);
  test::for_each_target([&] {
    for (int trial = 0; trial < 60; ++trial) {
      const int64_t T = 1 + rng.below(120), N = 1 + rng.below(100), K = 1 + rng.below(900);
      for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        const Tensor x = test::random_normal({T, K}, rng), w = test::random_normal({N, K}, rng).to(dtype);
        const Tensor bias = test::random_normal({N}, rng);
        set_num_threads(1);
        const Tensor whole = linear(x, Weight{w}, bias);
        set_num_threads(static_cast<int>(2 + rng.below(4)));
        EXPECT_TRUE(test::same_bits(linear(x, Weight{w}, bias), whole));
        // Few rows and many take different kernels.
        for (const int64_t rows : {int64_t{1}, 1 + rng.below(12), 1 + rng.below(T)}) {
          const int64_t begin = rng.below(std::max<int64_t>(1, T - rows + 1)),
                        end = std::min(T, begin + rows);
          EXPECT_TRUE(
              test::same_bits(linear(x.slice(0, begin, end), Weight{w}, bias), whole.slice(0, begin, end)))
              << begin << ":" << end << " of " << T << " x " << N << " x " << K << " " << name_of(dtype);
        }
      }
    }
  });
  set_num_threads(0);
}

TEST(Linear, ReadsStridedRows) {
  Rng rng(5);
  const Tensor wide = test::random_normal({7, 50}, rng), w = test::random_normal({9, 20}, rng);
  const Tensor x = wide.slice(1, 13, 33);
  EXPECT_TRUE(test::same_bits(linear(x, Weight{w}), linear(x.clone(), Weight{w})));
  EXPECT_TRUE(
      test::same_bits(linear(x, Weight{w}, {}, DType::bf16), linear(x.clone(), Weight{w}, {}, DType::bf16)));
}

TEST(Linear, NamesAnOperandThatDoesNotFit) {
  try {
    linear(Tensor::zeros({2, 3}), Weight{Tensor::zeros({4, 5})});
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "linear: x has shape [2, 3], expected [2, 5]");
  }
}

}  // namespace
}  // namespace ssm
