// The backward of causal_conv1d on a card against the f64 reference, in every type of activations.

#include "ssm/ops/causal_conv1d/causal_conv1d.h"
#include "ssm/ops/causal_conv1d/causal_conv1d_reference.h"
#include "ssm/ops/cuda/test_cuda.h"

namespace ssm {
namespace {

using test::on_card;
using test::rounded;

// Everything inside is f32; dx is rounded to the activations' type.
constexpr double kBound = 1e-5;
constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};

Tensor upload(const Tensor& x, DType dtype, int64_t left, int64_t right) {
  const int64_t T = x.size(0), C = x.size(1);
  const Tensor all = Tensor::zeros({T, left + C + right});
  for (int64_t t = 0; t < T; ++t)
    std::copy_n(x.data<float>() + t * C, C, all.data<float>() + t * all.size(1) + left);
  return on_card(all, dtype);
}

void expect_reference(const std::vector<int64_t>& lengths, int64_t C, int64_t K, DType dtype, Rng& rng) {
  const SequenceBatch batch = SequenceBatch::in_order(lengths);
  const int64_t T = batch.total(), left = rng.below(2) ? 0 : rng.below(2) ? 8 : 3, right = 8 * rng.below(2);
  const Tensor x = rounded(test::random_normal({T, C}, rng), dtype),
               dy = rounded(test::random_normal({T, C}, rng), dtype);
  const Tensor weight = test::random_normal({C, K}, rng);
  const Tensor bias = rng.below(3) ? test::random_normal({C}, rng) : Tensor();
  const Tensor initial =
      K > 1 && rng.below(3) ? test::random_normal({batch.size(), K - 1, C}, rng) : Tensor();
  const Activation activation = rng.below(3) ? Activation::silu : Activation::none;
  const std::string name =
      fmt::format("lengths {} C {} K {} {}", fmt::join(lengths, ","), C, K, name_of(dtype));

  std::vector<double> dx, dweight(static_cast<size_t>(C * K)),
      dbias(static_cast<size_t>(bias.defined() ? C : 0));
  for (int64_t b = 0; b < batch.size(); ++b) {
    const auto part = [&](const Tensor& t) {
      return test::to_doubles(t.slice(0, batch.offset(b), batch.offset(b + 1)));
    };
    const auto g = reference::causal_conv1d_backward(
        part(x), test::to_doubles(weight), bias.defined() ? test::to_doubles(bias) : std::vector<double>(),
        activation, C, K,
        initial.defined() ? test::to_doubles(initial.select(0, b))
                          : std::vector<double>(static_cast<size_t>((K - 1) * C)),
        part(dy));
    dx.insert(dx.end(), g.x.begin(), g.x.end());
    for (size_t i = 0; i < dweight.size(); ++i) dweight[i] += g.weight[i];
    for (size_t i = 0; i < dbias.size(); ++i) dbias[i] += g.bias[i];
  }

  const auto columns = [&](const Tensor& t) { return t.slice(1, left, left + C); };
  const Tensor dx_all = upload(x, dtype, left, right);
  const Tensor w = rng.below(2) ? on_card(weight) : on_card(weight.transpose(0, 1).clone()).transpose(0, 1);
  const Tensor dw = Tensor::zeros({K, C}).to(kCuda);
  const Tensor db = bias.defined() ? Tensor::zeros({C}).to(kCuda) : Tensor();
  for (int time = 0; time < 2; ++time) {  // parameters' gradients are added to, dx is overwritten
    causal_conv1d_backward(columns(upload(x, dtype, left, right)), w, on_card(bias), activation, batch,
                           on_card(initial), columns(upload(dy, dtype, left, right)),
                           {columns(dx_all), dw.transpose(0, 1), db});
  }
  for (std::vector<double>* v : {&dweight, &dbias}) {
    for (double& e : *v) e *= 2;
  }
  EXPECT_LT(test::relative_error(columns(dx_all.to(kCpu).to(DType::f32)), dx),
            kBound + test::rounding_of(dtype))
      << name;
  EXPECT_LT(test::relative_error(dw.to(kCpu).transpose(0, 1), dweight), kBound) << name;
  if (db.defined()) {
    EXPECT_LT(test::card_error(db, dbias), kBound) << name;
  }
}

TEST(CausalConv1dBackwardCuda, EqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(71);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<int64_t> lengths;
    for (int64_t b = 1 + rng.below(5); b > 0; --b) lengths.push_back(1 + rng.below(rng.below(3) ? 5 : 200));
    const int64_t C = rng.below(2) ? 8 * (1 + rng.below(80)) : 1 + rng.below(300);
    expect_reference(lengths, C, rng.below(2) ? 4 : 1 + rng.below(8), kTypes[rng.below(3)], rng);
  }
}

TEST(CausalConv1dBackwardCuda, LongAndMany) {
  SSM_NEED_CUDA();
  Rng rng(72);
  expect_reference({20000}, 40, 4, DType::f32, rng);
  expect_reference(std::vector<int64_t>(400, 3), 72, 4, DType::bf16, rng);
  for (const int64_t T : {63, 64, 65, 66, 67, 68, 127, 128, 129})
    expect_reference({T, T}, 24, 4, DType::f16, rng);
}

}  // namespace
}  // namespace ssm
