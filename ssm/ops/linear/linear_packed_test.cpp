// linear with packed weights: each format on every instruction set against the f64 product of the dequantized
// weights with activations that are rounded as linear.h says.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "ssm/core/parallel.h"
#include "ssm/ops/linear/linear.h"
#include "ssm/ops/linear/linear_reference.h"
#include "ssm/ops/linear_cross_entropy/linear_cross_entropy.h"
#include "ssm/ops/simd/extensions.h"
#include "ssm/ops/simd/test_targets.h"
#include "ssm/ops/test_packed.h"
#include "ssm/ops/test_util.h"
#include "ssm/quant/dequantize.h"

namespace ssm {
namespace {

// x as linear rounds it: 16-bit integers with a step for each 32 elements; nothing below 1e-30.
Tensor rounded(const Tensor& x) {
  const Tensor out = x.clone();
  for (int64_t t = 0; t < x.size(0); ++t) {
    for (int64_t k = 0; k < x.size(1); k += 32) {
      float* const run = out.data<float>() + t * x.size(1) + k;
      const int64_t n = std::min<int64_t>(32, x.size(1) - k);
      float largest = 0;
      for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(run[i]));
      for (int64_t i = 0; i < n; ++i) {
        run[i] =
            largest <= 1e-30f ? 0.0f : std::nearbyint(run[i] * (32767.0f / largest)) * (largest / 32767.0f);
      }
    }
  }
  return out;
}

std::vector<double> expected(const Tensor& x, const QuantizedTensor& w, const Tensor& bias) {
  return reference::linear(test::to_doubles(x), test::to_doubles(dequantize(w)),
                           bias.defined() ? test::to_doubles(bias) : std::vector<double>{}, x.size(0),
                           w.shape[0], w.shape[1]);
}

int64_t random_k(const QuantFormat& format, Rng& rng) {
  const bool groups = format.type == QuantType::int8 || format.type == QuantType::int4;
  if (groups) return 1 + rng.below(700);
  return fits(format, 32) ? 32 * (1 + rng.below(20)) : 256 * (1 + rng.below(3));
}

TEST(LinearPacked, EqualsTheReferenceOnEveryTarget) {
  Rng rng(1);
  test::for_each_target_and_extension([&] {
    for (const QuantFormat& format : test::packed_formats()) {
      SCOPED_TRACE(name_of(format));
      for (int trial = 0; trial < 12; ++trial) {
        const int64_t T = 1 + rng.below(rng.below(2) ? 9 : 40), N = 1 + rng.below(80),
                      K = random_k(format, rng);
        const QuantizedTensor w = test::random_packed(format, N, K, rng);
        const Tensor x = test::random_normal({T, K}, rng);
        const Tensor bias = rng.below(2) ? test::random_normal({N}, rng) : Tensor{};
        EXPECT_LT(test::relative_error(linear(x, Weight{w}, bias), expected(rounded(x), w, bias)), 3e-6)
            << T << " x " << N << " x " << K;
      }
    }
  });
}

TEST(LinearPacked, GivesTheSameBitsWithoutVnni) {
  const cpu::Extensions all = cpu::extensions();
  if (!all.vnni) GTEST_SKIP() << "this CPU has no AVX512_VNNI";
  Rng rng(10);
  for (const QuantFormat& format : test::packed_formats()) {
    for (const int64_t T : {int64_t{1}, 2 + rng.below(7), 9 + rng.below(60)}) {
      const int64_t N = 1 + rng.below(80), K = random_k(format, rng);
      const QuantizedTensor w = test::random_packed(format, N, K, rng);
      const Tensor x = test::random_normal({T, K}, rng), with = linear(x, Weight{w});
      cpu::allow_extensions({});
      EXPECT_TRUE(test::same_bits(linear(x, Weight{w}), with))
          << T << " x " << N << " x " << K << name_of(format);
      cpu::allow_extensions(all);
    }
  }
}

// What rounding costs: half a step of each element, of 2^-16 of the largest of its run.
TEST(LinearPacked, RoundsActivationsByHalfAStep) {
  Rng rng(2);
  for (const QuantFormat& format : test::packed_formats()) {
    const int64_t T = 6, N = 40, K = 512;
    const QuantizedTensor w = test::random_packed(format, N, K, rng);
    const Tensor x = test::random_normal({T, K}, rng);
    const std::vector<double> exact = expected(x, w, {}), y = test::to_doubles(linear(x, Weight{w}));
    const std::vector<double> xs = test::to_doubles(x), ws = test::to_doubles(dequantize(w));
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t n = 0; n < N; ++n) {
        double bound = 0, scale = 0;
        for (int64_t k = 0; k < K; ++k) {
          double largest = 0;
          for (int64_t i = k / 32 * 32; i < k / 32 * 32 + 32; ++i) {
            largest = std::max(largest, std::abs(xs[static_cast<size_t>(t * K + i)]));
          }
          const double weight = std::abs(ws[static_cast<size_t>(n * K + k)]);
          bound += weight * largest / 65534;
          scale += weight * std::abs(xs[static_cast<size_t>(t * K + k)]);
        }
        const auto at = static_cast<size_t>(t * N + n);
        EXPECT_LT(std::abs(y[at] - exact[at]), bound + 1e-6 * scale) << name_of(format);
      }
    }
    EXPECT_LT(test::relative_error(linear(x, Weight{w}), exact), 2e-4) << name_of(format);
  }
}

TEST(LinearPacked, RoundsActivationsToTheComputeTypeFirst) {
  Rng rng(3);
  for (const DType compute : {DType::bf16, DType::f16}) {
    const QuantizedTensor w = test::random_packed({QuantType::q8_0, 32}, 50, 320, rng);
    const Tensor x = test::random_normal({9, 320}, rng);
    EXPECT_TRUE(
        test::same_bits(linear(x, Weight{w}, {}, compute), linear(x.to(compute).to(DType::f32), Weight{w})));
  }
}

TEST(LinearPacked, ARowIsBitEqualWhateverTheBatchAndTheThreads) {
  Rng rng(4);
  test::for_each_target_and_extension([&] {
    for (const QuantFormat& format : test::packed_formats()) {
      SCOPED_TRACE(name_of(format));
      for (int trial = 0; trial < 4; ++trial) {
        const int64_t T = 1 + rng.below(70), N = 1 + rng.below(100), K = random_k(format, rng);
        const QuantizedTensor w = test::random_packed(format, N, K, rng);
        const Tensor x = test::random_normal({T, K + 5}, rng).slice(1, 3, K + 3);  // rows with a stride
        const Tensor bias = test::random_normal({N}, rng);
        set_num_threads(1);
        const Tensor whole = linear(x, Weight{w}, bias);
        set_num_threads(static_cast<int>(2 + rng.below(4)));
        EXPECT_TRUE(test::same_bits(linear(x, Weight{w}, bias), whole));
        // Few rows and many take different kernels.
        for (int64_t rows = 1; rows < 12; ++rows) {
          const int64_t begin = rng.below(std::max<int64_t>(1, T - rows + 1)),
                        end = std::min(T, begin + rows);
          EXPECT_TRUE(
              test::same_bits(linear(x.slice(0, begin, end), Weight{w}, bias), whole.slice(0, begin, end)))
              << begin << ":" << end << " of " << T << " x " << N << " x " << K;
        }
      }
    }
  });
  set_num_threads(0);
}

// Zeros, tiny and huge numbers, and one that is not finite, which its row alone shows.
TEST(LinearPacked, KeepsExtremes) {
  Rng rng(5);
  test::for_each_target_and_extension([&] {
    for (const int64_t T : {2, 20}) {
      const QuantizedTensor w = test::random_packed({QuantType::q4_k, 256}, 20, 512, rng);
      const Tensor x = test::random_normal({T, 512}, rng);
      const auto at = [&](int64_t t, int64_t k) -> float& { return x.data<float>()[t * 512 + k]; };
      for (int64_t k = 0; k < 64; ++k) at(0, k) = k < 32 ? 0.0f : 1e-38f;
      for (int64_t k = 64; k < 96; ++k) at(0, k) *= 1e30f;
      const Tensor y = linear(x, Weight{w});
      EXPECT_LT(test::relative_error(y, expected(rounded(x), w, {})), 3e-6);
      for (const float bad : {INFINITY, -INFINITY, NAN}) {
        at(1, 300) = bad;
        const Tensor with_bad = linear(x, Weight{w});
        EXPECT_TRUE(test::same_bits(with_bad.slice(0, 0, 1), y.slice(0, 0, 1)));
        for (int64_t n = 0; n < 20; ++n) EXPECT_TRUE(std::isnan(with_bad.data<float>()[20 + n])) << bad;
      }
    }
  });
}

// A row's last bytes are the end of the memory: nothing is read past them (AddressSanitizer sees it).
TEST(LinearPacked, ReadsNothingPastTheRows) {
  Rng rng(6);
  for (const QuantFormat& format : test::packed_formats()) {
    for (const int64_t T : {1, 30}) {
      const int64_t K = random_k(format, rng);
      const QuantizedTensor w = test::random_packed(format, 3, K, rng);
      auto bytes = std::make_shared<std::vector<std::byte>>(w.bytes.raw(), w.bytes.raw() + w.bytes.bytes());
      const QuantizedTensor exact =
          packed_view(format, w.shape, Tensor::from_memory(bytes->data(), w.bytes.shape(), DType::u8, bytes));
      const Tensor x = test::random_normal({T, K}, rng);
      EXPECT_TRUE(test::same_bits(linear(x, Weight{exact}), linear(x, Weight{w})));
    }
  }
}

TEST(LinearPacked, TheGradientOfXIsThatOfTheDequantizedRows) {
  Rng rng(7);
  for (const QuantFormat& format : test::packed_formats()) {
    const int64_t T = 1 + rng.below(30), N = 1 + rng.below(1200), K = random_k(format, rng);
    const QuantizedTensor w = test::random_packed(format, N, K, rng);
    const Tensor dy = test::random_normal({T, N}, rng), dx = test::random_normal({T, K}, rng);
    for (const bool adds : {false, true}) {
      const Tensor expected = dx.clone(), actual = dx.clone();
      linear_backward({}, Weight{dequantize(w)}, dy, {.dx = expected, .dx_adds = adds});
      linear_backward({}, Weight{w}, dy, {.dx = actual, .dx_adds = adds});
      EXPECT_TRUE(test::same_bits(actual, expected)) << name_of(format) << T << " " << N << " " << K;
    }
  }
}

// Losses and gradients of the head as with the dequantized one, but for the rounding of hidden.
TEST(LinearPacked, ServesAsTheHeadOfALoss) {
  Rng rng(8);
  const int64_t T = 12, V = 70, M = 64;
  const QuantizedTensor w = test::random_packed({QuantType::int4, 64}, V, M, rng);
  const Tensor hidden = test::random_normal({T, M}, rng);
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < T; ++t) ids.push_back(static_cast<int32_t>(rng.below(V - 6)));
  const Tensor targets = Tensor::from_values<int32_t>(ids, {T});
  const Tensor dhidden = Tensor::zeros({T, M}), dense_dhidden = Tensor::zeros({T, M});
  const auto loss = linear_cross_entropy(hidden, Weight{w}, targets, {}, 1.0f, V - 6, {.dhidden = dhidden});
  const auto dense_loss = linear_cross_entropy(hidden, Weight{dequantize(w)}, targets, {}, 1.0f, V - 6,
                                               {.dhidden = dense_dhidden});
  const double of_dense = dense_loss.loss.data<double>()[0];
  EXPECT_NEAR(loss.loss.data<double>()[0], of_dense, 1e-4 * of_dense);
  EXPECT_LT(test::relative_error(dhidden, test::to_doubles(dense_dhidden)), 5e-4);
}

TEST(LinearPacked, SaysWhatItCannotDo) {
  Rng rng(9);
  const Weight w{test::random_packed({QuantType::q4_0, 32}, 8, 64, rng)};
  const auto message = [](auto&& f) -> std::string {
    try {
      f();
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  EXPECT_EQ(message([&] {
              linear(Tensor::zeros({2, 32}), w);
            }),
            "linear: x has shape [2, 32], expected [2, 64]");
  const LinearGrads grads{.dweight = Tensor::zeros({8, 64})};
  EXPECT_EQ(message([&] {
              linear_backward(Tensor::zeros({2, 64}), w, Tensor::zeros({2, 8}), grads);
            }),
            "linear_backward: a packed weight (q4_0) has no gradient");
}

}  // namespace
}  // namespace ssm
