// The layer norms and their backwards on a card against the f64 reference, in every activation type.
#include "ssm/autograd/tape.h"
#include "ssm/core/graph.h"
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/ops/layer_norm/layer_norm.h"
#include "ssm/ops/layer_norm/layer_norm_reference.h"

namespace ssm {
namespace {

using Doubles = std::vector<double>;

DType any_type(Rng& rng) { return kTypes[rng.below(3)]; }

// A width of at least 8: of fewer values the mean takes away most of what they are.
int64_t any_width(int64_t most, Rng& rng) {
  return rng.below(2) ? 8 * (1 + rng.below(most / 8)) : 8 + rng.below(most);
}

struct Case {
  int64_t T, M;
  DType dtype, result;
  Tensor x, residual, dy, above, weight, bias;  // on the host, as the card will see them
  float eps;
  Case(int64_t rows, int64_t most, Rng& rng) : T(rows), M(any_width(most, rng)) {
    dtype = any_type(rng), result = any_type(rng);
    x = rounded(test::random_normal({T, M}, rng, 2.0f), dtype);
    dy = rounded(test::random_normal({T, M}, rng), dtype);
    residual = test::random_normal({T, M}, rng, 2.0f), above = test::random_normal({T, M}, rng);
    weight = test::random_normal({M}, rng, 0.3f, 1.0f), bias = test::random_normal({M}, rng);
    eps = rng.below(2) ? 1e-5f : 0.1f;
  }
  // In half of the cases as columns of a wider tensor, at places that 16-byte loads take and at others.
  static Tensor upload(const Tensor& t, DType type, Rng& rng) {
    return test::columns_on_card(t, type, rng.below(2) ? 8 : 1, rng);
  }
  Doubles normed(const Doubles& u) const {
    return reference::layer_norm<double>(u, to_doubles(weight), to_doubles(bias), static_cast<double>(eps));
  }
  auto gradients(const Doubles& u) const {
    return reference::layer_norm_backward<double>(u, to_doubles(weight), static_cast<double>(eps),
                                                  to_doubles(dy));
  }
  Doubles sum() const {
    Doubles u = to_doubles(residual), add = to_doubles(x);
    for (size_t i = 0; i < u.size(); ++i) u[i] += add[i];
    return u;
  }
  std::string name() const {
    return fmt::format("T {} M {} {} to {}", T, M, name_of(dtype), name_of(result));
  }
};

// Rows that registers keep, and wider ones.
Case forward_case(Rng& rng) { return {1 + rng.below(20), rng.below(4) ? 400 : 12000, rng}; }

TEST(LayerNormCuda, EqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(31);
  for (int trial = 0; trial < 200; ++trial) {
    const Case c = forward_case(rng);
    const Tensor y =
        layer_norm(c.upload(c.x, c.dtype, rng), on_card(c.weight), on_card(c.bias), c.eps, c.result);
    EXPECT_EQ(y.dtype(), c.result);
    EXPECT_LT(card_error(y, c.normed(to_doubles(c.x))), 5e-6 + rounding_of(c.result)) << c.name();
  }
}

TEST(LayerNormCuda, AddUpdatesTheResidual) {
  SSM_NEED_CUDA();
  Rng rng(32);
  for (int trial = 0; trial < 200; ++trial) {
    const Case c = forward_case(rng);
    const Tensor given = c.upload(c.residual, DType::f32, rng);
    Tensor residual = given;
    const Tensor y = add_layer_norm(c.upload(c.x, c.dtype, rng), residual, on_card(c.weight), on_card(c.bias),
                                    c.eps, c.result);
    EXPECT_EQ(residual.raw(), given.raw());
    EXPECT_LT(card_error(y, c.normed(c.sum())), 5e-6 + rounding_of(c.result)) << c.name();
    EXPECT_LT(test::relative_error(test::from_card(given), c.sum()), 1e-6) << c.name();
  }
}

TEST(LayerNormCuda, TwoOfOneResidualAreTheBitsOfEach) {
  SSM_NEED_CUDA();
  Rng rng(39);
  for (int trial = 0; trial < 60; ++trial) {
    const Case c = forward_case(rng);
    const Tensor x = rng.below(3) ? on_card(c.x, c.dtype) : Tensor();
    const Tensor w = on_card(c.weight), b = on_card(c.bias), w2 = on_card(test::random_normal({c.M}, rng));
    Tensor residual = on_card(c.residual), expected = on_card(c.residual);
    const Tensor y = x.defined() ? add_layer_norm(x, expected, w, b, c.eps, c.result)
                                 : layer_norm(expected, w, b, c.eps, c.result);
    const auto both = layer_norms(x, residual, {w, b, c.eps}, {w2, b, 0.2f}, c.result);
    EXPECT_TRUE(same_bits(residual.to(kCpu), expected.to(kCpu))) << c.name();
    EXPECT_TRUE(same_bits(both.first.to(kCpu), y.to(kCpu))) << c.name();
    EXPECT_TRUE(same_bits(both.second.to(kCpu), layer_norm(expected, w2, b, 0.2f, c.result).to(kCpu)))
        << c.name();
  }
}

TEST(LayerNormCuda, AFarMeanCostsLittle) {
  SSM_NEED_CUDA();
  Rng rng(33);
  for (int trial = 0; trial < 20; ++trial) {
    const Case c = forward_case(rng);
    const Tensor far = test::random_normal({c.T, c.M}, rng, 1.0f, 100.0f);
    const Tensor y = layer_norm(on_card(far), on_card(c.weight), on_card(c.bias), c.eps);
    EXPECT_LT(card_error(y, c.normed(to_doubles(far))), 5e-5) << c.name();
  }
}

TEST(LayerNormCuda, ARowIsTheSameAlone) {
  SSM_NEED_CUDA();
  Rng rng(34);
  for (const int64_t M : {512, 2560, 9000}) {
    const Tensor x = on_card(test::random_normal({300, M}, rng)),
                 weight = on_card(test::random_normal({M}, rng)),
                 bias = on_card(test::random_normal({M}, rng));
    const Tensor all = layer_norm(x, weight, bias, 1e-5f).to(kCpu);
    const Tensor row = layer_norm(x.slice(0, 217, 218), weight, bias, 1e-5f).to(kCpu);
    EXPECT_TRUE(same_bits(row, all.slice(0, 217, 218))) << M;
  }
}

TEST(LayerNormCuda, ReplaysInAGraph) {
  SSM_NEED_CUDA();
  Rng rng(35);
  const Case c(3, 3000, rng);
  const Tensor x = on_card(c.x, c.dtype), weight = on_card(c.weight), bias = on_card(c.bias);
  Tensor residual = on_card(c.residual), again = on_card(c.residual), warm = on_card(c.residual), y;
  Arena arena;
  const ArenaScope scope(&arena);
  add_layer_norm(x, warm, weight, bias, c.eps, c.dtype);
  const Graph graph([&] { y = add_layer_norm(x, residual, weight, bias, c.eps, c.dtype); });
  for (int step = 0; step < 3; ++step) {
    graph.replay();
    const Tensor expected = add_layer_norm(x, again, weight, bias, c.eps, c.dtype);
    EXPECT_TRUE(same_bits(y.to(kCpu), expected.to(kCpu))) << step;
    EXPECT_TRUE(same_bits(residual.to(kCpu), again.to(kCpu))) << step;
  }
}

// Few rows of any width, many narrow ones: more than blocks run at once.
Case backward_case(Rng& rng) {
  if (rng.below(4) == 0) return {1 + rng.below(20), 9000, rng};
  return {rng.below(6) ? 1 + rng.below(60) : 1000 + rng.below(1200), 400, rng};
}

// What a backward has added to `before`.
void expect_added(const Tensor& sum, const Tensor& before, Doubles expected, const std::string& what) {
  for (size_t i = 0; i < expected.size(); ++i) expected[i] += static_cast<double>(before.data<float>()[i]);
  EXPECT_LT(card_error(sum, expected), 1e-5) << what;
  copy_bytes(sum.raw(), kCuda, before.raw(), kCpu, sum.bytes());
}

TEST(LayerNormBackwardCuda, EqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(36);
  for (int trial = 0; trial < 100; ++trial) {
    const Case c = backward_case(rng);
    const Tensor weight = on_card(c.weight);
    const Tensor dw0 = test::random_normal({c.M}, rng), db0 = test::random_normal({c.M}, rng);
    const Tensor dw = on_card(dw0), db = on_card(db0);
    const auto dy = [&] { return c.upload(c.dy, c.dtype, rng); };

    // x, dy and dx of one type; beside them x and dx in f32, as the residual is.
    for (const DType type : {c.dtype, DType::f32}) {
      const Tensor dx = Tensor::empty({c.T, c.M}, type, kCuda);
      const Tensor& u = type == DType::f32 ? c.residual : c.x;
      layer_norm_backward(c.upload(u, type, rng), weight, c.eps, dy(),
                          {.dx = dx, .dweight = dw, .dbias = db});
      const auto expected = c.gradients(to_doubles(u));
      EXPECT_LT(card_error(dx, expected.x), 1e-5 + rounding_of(type)) << c.name();
      expect_added(dw, dw0, expected.weight, "dweight " + c.name());
      expect_added(db, db0, expected.bias, "dbias " + c.name());
    }

    auto expected = c.gradients(to_doubles(c.residual));
    for (size_t i = 0; i < expected.x.size(); ++i)
      expected.x[i] += static_cast<double>(c.above.data<float>()[i]);
    const Tensor dresidual = c.upload(c.above, DType::f32, rng);
    const Tensor dx = rng.below(4) ? Tensor::empty({c.T, c.M}, c.dtype, kCuda) : Tensor();
    const bool sums = rng.below(4) != 0;
    add_layer_norm_backward(
        c.upload(c.residual, DType::f32, rng), weight, c.eps, dy(), dresidual,
        {.dx = dx, .dweight = sums ? dw : Tensor(), .dbias = rng.below(2) ? db : Tensor()});
    EXPECT_LT(test::relative_error(test::from_card(dresidual), expected.x), 1e-5) << c.name();
    if (dx.defined()) {
      EXPECT_LT(card_error(dx, expected.x), 1e-5 + rounding_of(c.dtype)) << c.name();
    }
    if (sums) expect_added(dw, dw0, expected.weight, "dweight of the sum " + c.name());
  }
}

// A layer whose MLP stands beside its mixer: two norms read one residual, which has a gradient from above
// too.
TEST(LayerNormBackwardCuda, TheTapeEqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(37);
  for (int trial = 0; trial < 30; ++trial) {
    const Case c(1 + rng.below(40), 900, rng);
    const Tensor dy2 = rounded(test::random_normal({c.T, c.M}, rng), c.dtype);
    Tensor x = on_card(c.x, c.dtype), residual = on_card(c.residual), weight = on_card(c.weight),
           bias = on_card(c.bias);
    watch(x, c.dtype);
    for (Tensor* t : {&residual, &weight, &bias}) watch(*t);
    const Tensor before = residual;
    Tape tape;
    Tensor y, y2;
    {
      const RecordScope recording(&tape);
      std::tie(y, y2) = layer_norms(x, residual, {weight, bias, c.eps}, {weight, bias, c.eps}, c.dtype);
    }
    EXPECT_NE(residual.raw(), before.raw());
    gradient_hand_over(residual, on_card(c.above));
    gradient_hand_over(y, on_card(c.dy, c.dtype));
    gradient_hand_over(y2, on_card(dy2, c.dtype));
    tape.backward();
    const Doubles u = to_doubles(residual.to(kCpu));
    auto expected = c.gradients(u);
    const auto second = reference::layer_norm_backward<double>(u, to_doubles(c.weight),
                                                               static_cast<double>(c.eps), to_doubles(dy2));
    for (size_t i = 0; i < u.size(); ++i)
      expected.x[i] += second.x[i] + static_cast<double>(c.above.data<float>()[i]);
    for (size_t m = 0; m < expected.bias.size(); ++m) {
      expected.weight[m] += second.weight[m];
      expected.bias[m] += second.bias[m];
    }
    EXPECT_LT(card_error(gradient_of(before), expected.x), 2e-5) << c.name();
    EXPECT_LT(card_error(gradient_of(x), expected.x), 2e-5 + rounding_of(c.dtype)) << c.name();
    EXPECT_LT(card_error(gradient_of(weight), expected.weight), 2e-5) << c.name();
    EXPECT_LT(card_error(gradient_of(bias), expected.bias), 2e-5) << c.name();
  }
}

TEST(LayerNormBackwardCuda, TheSameBitsAgainAndARowWhateverTheBatch) {
  SSM_NEED_CUDA();
  Rng rng(38);
  const int64_t T = 2500, M = 768;
  const Tensor x = on_card(test::random_normal({T, M}, rng)),
               dy = on_card(test::random_normal({T, M}, rng), DType::bf16),
               weight = on_card(test::random_normal({M}, rng));
  Tensor dx0, dw0, db0;
  for (int trial = 0; trial < 2; ++trial) {
    const Tensor dx = Tensor::empty({T, M}, DType::f32, kCuda), dw = Tensor::zeros({M}, DType::f32, kCuda),
                 db = Tensor::zeros({M}, DType::f32, kCuda);
    layer_norm_backward(x, weight, 1e-5f, dy, {.dx = dx, .dweight = dw, .dbias = db});
    if (trial == 0) dx0 = dx.to(kCpu), dw0 = dw.to(kCpu), db0 = db.to(kCpu);
    EXPECT_TRUE(same_bits(dx.to(kCpu), dx0) && same_bits(dw.to(kCpu), dw0) && same_bits(db.to(kCpu), db0));
  }
  const Tensor row = Tensor::empty({1, M}, DType::f32, kCuda);
  layer_norm_backward(x.slice(0, 2100, 2101), weight, 1e-5f, dy.slice(0, 2100, 2101),
                      {.dx = row, .dweight = {}, .dbias = {}});
  EXPECT_TRUE(same_bits(row.to(kCpu), dx0.slice(0, 2100, 2101)));
}

TEST(LayerNormCuda, NamesWhatDoesNotFit) {
  SSM_NEED_CUDA();
  const Tensor x = Tensor::zeros({2, 8}, DType::bf16, kCuda), w = Tensor::zeros({8}, DType::f32, kCuda);
  Tensor narrow = Tensor::zeros({2, 8}, DType::bf16, kCuda);
  EXPECT_THROW(layer_norm(x, Tensor::zeros({8}), w, 1e-5f), Error);
  EXPECT_THROW(layer_norm(x, w, narrow.select(0, 0), 1e-5f), Error);
  EXPECT_THROW(add_layer_norm(x, narrow, w, w, 1e-5f), Error);
}

}  // namespace
}  // namespace ssm
