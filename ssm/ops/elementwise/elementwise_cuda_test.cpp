#include "ssm/autograd/tape.h"
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/ops/elementwise/elementwise.h"

namespace ssm {
namespace {

TEST(ElementwiseCuda, NegativeExpKeepsTheLayout) {
  SSM_NEED_CUDA();
  Rng rng(1);
  for (const int64_t rows : {1, 5, 300}) {
    const Tensor x = test::random_normal({rows, 70}, rng);
    for (const Tensor& t : {x, x.transpose(0, 1)}) {
      const Tensor y = negative_exp(t.to(kCuda));
      EXPECT_EQ(y.stride(0), t.stride(0));
      std::vector<double> expected = to_doubles(t);
      for (double& v : expected) v = -std::exp(v);
      EXPECT_LT(card_error(y, expected), 1e-6);
    }
  }
}

TEST(ElementwiseCuda, NegativeExpBackwardIsTheCpusInAnyLayout) {
  SSM_NEED_CUDA();
  Rng rng(4);
  for (int trial = 0; trial < 20; ++trial) {
    const int64_t rows = 1 + rng.below(300), columns = 1 + rng.below(40);
    const auto tensor = [&] {
      return rng.below(2) ? test::random_normal({rows, columns}, rng)
                          : test::random_normal({columns, rows}, rng).transpose(0, 1);
    };
    const auto upload = [](const Tensor& t) {
      return t.contiguous() ? t.to(kCuda) : t.transpose(0, 1).to(kCuda).transpose(0, 1);
    };
    const Tensor y = tensor(), dy = tensor(), dx = tensor(), on = upload(dx);
    negative_exp_backward(upload(y), upload(dy), on);
    negative_exp_backward(y, dy, dx);
    const Tensor back = on.contiguous() ? on.to(kCpu) : on.transpose(0, 1).to(kCpu).transpose(0, 1);
    EXPECT_LT(test::relative_error(back, test::to_doubles(dx)), 1e-6);
  }
}

TEST(ElementwiseCuda, AddScaledAndDropoutEqualTheCpus) {
  SSM_NEED_CUDA();
  Rng rng(3);
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (const int64_t T : {1, 7, 40000}) {
      const int64_t M = 1 + rng.below(70);
      const Tensor x = test::rounded(test::random_normal({T, M}, rng), dtype);
      const Tensor y = test::rounded(test::random_normal({T, M}, rng), dtype);
      const Tensor on = y.to(dtype).to(kCuda);
      add_scaled(on, x.to(dtype).to(kCuda), 0.75f);
      // A multiply-add there rounds once, here the product and the sum do, and the sum may cancel.
      EXPECT_LT(test::card_error(on, test::to_doubles(add_scaled(y.clone(), x, 0.75f))),
                3e-7 + test::rounding_of(dtype));
      EXPECT_LT(
          test::card_error(dropout(x.to(dtype).to(kCuda), 0.3f, 11), test::to_doubles(dropout(x, 0.3f, 11))),
          test::rounding_of(dtype));
    }
  }
}

// Rows of wider tensors, which 16-byte accesses take or not.
TEST(ElementwiseCuda, AddScaledTakesRowsWithAStride) {
  SSM_NEED_CUDA();
  Rng rng(7);
  for (int trial = 0; trial < 60; ++trial) {
    const DType dtype = kTypes[rng.below(3)];
    const int64_t T = 1 + rng.below(20), M = rng.below(2) ? 8 * (1 + rng.below(90)) : 1 + rng.below(700);
    const Tensor x = rounded(test::random_normal({T, M}, rng), dtype);
    const Tensor y = rounded(test::random_normal({T, M}, rng), dtype);
    const auto upload = [&](const Tensor& t) {
      return test::columns_on_card(t, dtype, rng.below(2) ? 8 : 1, rng);
    };
    const Tensor on = upload(y);
    add_scaled(on, upload(x), 0.75f);
    EXPECT_LT(test::relative_error(test::from_card(on), test::to_doubles(add_scaled(y.clone(), x, 0.75f))),
              3e-7 + rounding_of(dtype))
        << T << " " << M << " " << name_of(dtype);
  }
}

TEST(ElementwiseCuda, TakeRowsAndItsGradientAreTheCpus) {
  SSM_NEED_CUDA();
  Rng rng(6);
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    const int64_t T = 1 + rng.below(5000), M = 1 + rng.below(600);
    std::vector<int32_t> places;
    for (int32_t t = 0; t < T; ++t) {
      if (rng.below(4) == 0) places.push_back(t);
    }
    const auto n = std::ssize(places);
    const Tensor x = test::rounded(test::random_normal({T, M}, rng), dtype);
    const Tensor dy = test::rounded(test::random_normal({n, M}, rng), dtype);
    const Tensor at = Tensor::from_values<int32_t>(places, {n});
    const auto both = [&](Device device, DType type) {
      Tensor in = x.to(type).to(device);
      watch(in, type);
      Tape tape;
      Tensor y;
      {
        const RecordScope recording(&tape);
        y = take_rows(in, at.to(device));
      }
      tape.backward(y, dy.to(type).to(device));
      return std::pair(test::to_doubles(y.to(kCpu).to(DType::f32)),
                       test::to_doubles(gradient_of(in).to(kCpu).to(DType::f32)));
    };
    EXPECT_EQ(both(kCuda, dtype), both(kCpu, DType::f32));
  }
}

}  // namespace
}  // namespace ssm
