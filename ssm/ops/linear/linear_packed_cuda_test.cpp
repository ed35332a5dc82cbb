// linear with packed weights on a card against the f64 product with the dequantized ones: every format, every
// activation type, few rows and many.
#include "ssm/ops/linear/linear_packed_cuda.h"

#include <cmath>

#include "ssm/core/graph.h"
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/ops/linear/linear.h"
#include "ssm/ops/linear/linear_reference.h"
#include "ssm/ops/test_packed.h"
#include "ssm/quant/card_layout.h"
#include "ssm/quant/dequantize.h"

namespace ssm {
namespace {

int64_t random_k(const QuantFormat& format, Rng& rng) {
  if (fits(format, 1)) return 1 + rng.below(rng.below(3) ? 700 : 6000);
  const int64_t blocks = fits(format, 32) ? 24 : 4;
  return format.group * (1 + rng.below(rng.below(3) ? blocks : 8 * blocks));
}

struct Case {
  int64_t T, N, K;
  DType dtype, result;
  QuantizedTensor w;
  Tensor x, bias;  // on the host, as the card will see them
  Case(const QuantFormat& format, int64_t most_rows, Rng& rng) {
    T = 1 + rng.below(most_rows), N = 1 + rng.below(rng.below(4) ? 100 : 700), K = random_k(format, rng);
    dtype = kTypes[rng.below(3)], result = rng.below(2) ? dtype : DType::f32;
    w = test::random_packed(format, N, K, rng);
    x = rounded(test::random_normal({T, K}, rng), dtype);
    if (rng.below(2)) bias = test::random_normal({N}, rng, 10.0f);
  }
  Tensor upload(Rng& rng) const { return test::columns_on_card(x, dtype, rng.below(2) ? 1 : 8, rng); }
  QuantizedTensor on_card_w() const { return to_card(w, kCuda); }
  std::vector<double> expected() const {
    return reference::linear(to_doubles(x), to_doubles(dequantize(w)),
                             bias.defined() ? to_doubles(bias) : std::vector<double>{}, T, N, K);
  }
  // Sums in f32, the result is rounded; of many rows the weights and the bias as well.
  double bound(bool many) const {
    const double sums = 5e-6 + 1e-9 * static_cast<double>(K);
    return sums + rounding_of(result) * (many && result != DType::f32 ? 2 : 1) +
           (many && dtype != DType::f32 ? 5 * rounding_of(dtype) : 0.0);
  }
  std::string name() const {
    return fmt::format("{} T {} N {} K {} {} to {}{}", name_of(w.format), T, N, K, name_of(dtype),
                       name_of(result), bias.defined() ? " with a bias" : "");
  }
};

TEST(LinearPackedCuda, EqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(41);
  for (const QuantFormat& format : test::packed_formats()) {
    for (int trial = 0; trial < 24; ++trial) {
      const Case c(format, std::array{1, 8, 70}[static_cast<size_t>(trial % 3)], rng);
      const Tensor y = linear(c.upload(rng), Weight{c.on_card_w()}, on_card(c.bias), c.dtype, c.result);
      EXPECT_LT(card_error(y, c.expected()), c.bound(c.T > cuda::kMostPackedRows)) << c.name();
    }
  }
}

TEST(LinearPackedCuda, EveryWayEqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(42);
  for (const QuantFormat& format : test::packed_formats()) {
    for (int trial = 0; trial < 8; ++trial) {
      const Case c(format, 150, rng);
      const auto expected = c.expected();
      const Tensor x = c.upload(rng), bias = on_card(c.bias);
      const QuantizedTensor w = c.on_card_w();
      for (const bool many : {false, true}) {
        const Tensor y = on_card(test::random_normal({c.T, c.N}, rng, 1e4f), c.result);
        many ? cuda::linear_packed_many_rows(x, w, bias, y) : cuda::linear_packed_few_rows(x, w, bias, y);
        EXPECT_LT(card_error(y, expected), c.bound(many)) << c.name() << (many ? " many" : " few");
      }
    }
  }
}

// The shapes of a 2.8b model's layer: all warps of a block, several chunks each.
TEST(LinearPackedCuda, EqualsTheReferenceOnAModelsShapes) {
  SSM_NEED_CUDA();
  Rng rng(43);
  for (const char* type : {"int4", "int8", "q4_k", "q6_k"}) {
    for (const auto& [N, K] : {std::pair<int64_t, int64_t>{400, 2560}, {192, 5120}, {80, 8192}}) {
      const QuantizedTensor w = test::random_packed(*quant_format(type, 128), N, K, rng);
      for (const int64_t T : {1, 8, 20}) {
        const Tensor x = rounded(test::random_normal({T, K}, rng), DType::bf16);
        const Tensor y =
            linear(on_card(x, DType::bf16), Weight{to_card(w, kCuda)}, {}, DType::bf16, DType::f32);
        const auto expected =
            reference::linear(to_doubles(x), to_doubles(dequantize(w)), std::vector<double>{}, T, N, K);
        EXPECT_LT(card_error(y, expected), 2e-5) << type << " " << T << " " << N << " " << K;
      }
    }
  }
}

// Rows whose sums of groups fill the shared memory, so that fewer rows go through at a time; at last none.
TEST(LinearPackedCuda, EqualsTheReferenceOnLongRows) {
  SSM_NEED_CUDA();
  Rng rng(49);
  for (const char* type : {"int4", "q2_k", "q4_k", "q8_0"}) {
    for (const int64_t K : {12288, 24576, 65536, 65536 + 256}) {
      const QuantizedTensor w = test::random_packed(*quant_format(type, 32), 20, K, rng);
      for (const int64_t T : {1, 8, 33}) {
        const Tensor x = rounded(test::random_normal({T, K}, rng), DType::f16);
        const Tensor y =
            linear(on_card(x, DType::f16), Weight{to_card(w, kCuda)}, {}, DType::f16, DType::f32);
        const auto expected =
            reference::linear(to_doubles(x), to_doubles(dequantize(w)), std::vector<double>{}, T, 20, K);
        EXPECT_LT(card_error(y, expected), K > cuda::kMostPackedColumns ? 5e-3 : 1e-4)
            << type << " " << T << " " << K;
      }
    }
  }
}

TEST(LinearPackedCuda, UnpacksToTheBit) {
  SSM_NEED_CUDA();
  Rng rng(44);
  for (const QuantFormat& format : test::packed_formats()) {
    for (int trial = 0; trial < 4; ++trial) {
      const int64_t N = 1 + rng.below(90), K = random_k(format, rng), first = rng.below((N + 15) / 16) * 16;
      const QuantizedTensor w = test::random_packed(format, N, K, rng);
      const Tensor to = Tensor::empty({N - first, K}, DType::f32, kCuda);
      cuda::unpack_rows(to_card(w, kCuda), first, to);
      EXPECT_TRUE(same_bits(to.to(kCpu), dequantize(w).slice(0, first, N))) << name_of(format) << " " << K;
    }
  }
}

TEST(LinearPackedCuda, ARowDoesNotDependOnTheRowsBesideIt) {
  SSM_NEED_CUDA();
  Rng rng(45);
  for (const QuantFormat& format : test::packed_formats()) {
    for (int trial = 0; trial < 3; ++trial) {
      const Case c(format, 8, rng);
      const Tensor x = on_card(c.x, c.dtype);
      const Weight w{c.on_card_w()};
      const Tensor whole = linear(x, w, {}, c.dtype).to(kCpu);
      const Tensor first = linear(x.slice(0, 0, 1), w, {}, c.dtype).to(kCpu);
      EXPECT_TRUE(same_bits(first, whole.slice(0, 0, 1))) << c.name();
    }
  }
}

TEST(LinearPackedCuda, ANumberThatIsNotFiniteStaysInItsRow) {
  SSM_NEED_CUDA();
  Rng rng(46);
  for (const char* type : {"q8_0", "int4", "q4_k"}) {
    const Weight w{to_card(test::random_packed(*quant_format(type, 64), 40, 512, rng), kCuda)};
    for (const DType dtype : kTypes) {
      for (const int64_t T : {3, 12, 80}) {
        const Tensor x = test::random_normal({T, 512}, rng);
        const Tensor y = linear(on_card(x, dtype), w, {}, dtype).to(kCpu).to(DType::f32);
        x.data<float>()[512 + 300] = NAN;
        const Tensor with_nan = linear(on_card(x, dtype), w, {}, dtype).to(kCpu).to(DType::f32);
        for (int64_t i = 0; i < y.numel(); ++i) {
          const float value = with_nan.data<float>()[i];
          EXPECT_TRUE(i / 40 == 1 ? std::isnan(value) : value == y.data<float>()[i]) << type << " " << i;
        }
      }
    }
  }
}

TEST(LinearPackedCuda, ACapturedProductReadsWhatItsOperandsThenHold) {
  SSM_NEED_CUDA();
  Rng rng(47);
  const int64_t N = 80, K = 1536;
  for (const char* type : {"q8_0", "int4", "q6_k"}) {
    const Weight w{to_card(test::random_packed(*quant_format(type), N, K, rng), kCuda)};
    const Weight v{to_card(test::random_packed(*quant_format("int8", 32), 48, N, rng), kCuda)};
    for (const int64_t T : {1, 5, 16, 100}) {
      for (const DType dtype : kTypes) {
        const Tensor x = on_card(test::random_normal({T, K}, rng), dtype);
        Tensor y, z;
        const auto body = [&] {
          y = linear(x, w, {}, dtype);
          z = linear(y, v, {}, dtype);
        };
        Arena arena;
        const ArenaScope scope(&arena);
        body();
        synchronize(kCuda);
        body();
        y = z = {};
        const Graph graph(body);
        for (int trial = 0; trial < 2; ++trial) {
          const Tensor fresh = test::random_normal({T, K}, rng).to(dtype);
          copy_bytes(x.raw(), kCuda, fresh.raw(), kCpu, x.bytes());
          graph.replay();
          const Tensor captured = z.to(kCpu);
          const Tensor again = linear(linear(x, w, {}, dtype), v, {}, dtype).to(kCpu);
          EXPECT_TRUE(same_bits(captured, again)) << type << " " << T << " " << name_of(dtype);
        }
      }
    }
  }
}

TEST(LinearPackedCuda, TheGradientOfXIsThatOfTheDequantizedRows) {
  SSM_NEED_CUDA();
  Rng rng(48);
  for (const QuantFormat& format : test::packed_formats()) {
    for (const DType dtype : kTypes) {
      const int64_t T = 1 + rng.below(30), N = 1 + rng.below(600), K = random_k(format, rng);
      const QuantizedTensor w = test::random_packed(format, N, K, rng);
      const Tensor dy = rounded(test::random_normal({T, N}, rng), dtype),
                   dx = rounded(test::random_normal({T, K}, rng), dtype);
      for (const bool adds : {false, true}) {
        const Tensor expected = dx.clone(), actual = on_card(dx, dtype);
        linear_backward({}, Weight{dequantize(w)}, dy, {.dx = expected, .dx_adds = adds});
        linear_backward({}, Weight{to_card(w, kCuda)}, on_card(dy, dtype), {.dx = actual, .dx_adds = adds});
        EXPECT_LT(card_error(actual, to_doubles(expected)),
                  1e-5 + (dtype == DType::f32 ? 0 : 5 * rounding_of(dtype)))
            << name_of(format) << " " << T << " " << N << " " << K << " " << name_of(dtype);
      }
    }
  }
}

}  // namespace
}  // namespace ssm
