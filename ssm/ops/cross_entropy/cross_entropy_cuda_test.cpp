// cross_entropy on a card against the f64 reference. Bound: as on the CPU, 1e-5 + 1e-6 x; the sum's own
// relative error is some 1e-6, which is what it adds to the logarithm.
#include "ssm/core/graph.h"
#include "ssm/ops/cross_entropy/cross_entropy.h"
#include "ssm/ops/cross_entropy/cross_entropy_reference.h"
#include "ssm/ops/cuda/test_cuda.h"

namespace ssm {
namespace {

std::vector<int32_t> random_targets(int64_t T, int64_t vocab, Rng& rng) {
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < T; ++t) targets.push_back(static_cast<int32_t>(rng.below(vocab + 1)) - 1);
  return targets;
}

void expect_reference(const CrossEntropy& on, const Tensor& logits, const std::vector<int32_t>& targets,
                      int64_t vocab) {
  const Tensor nll = on.nll.to(kCpu), argmax = on.argmax.to(kCpu);
  const std::vector<double> expected =
      reference::cross_entropy(to_doubles(logits), targets, logits.size(1), vocab);
  for (int64_t t = 0; t < logits.size(0); ++t) {
    const auto i = static_cast<size_t>(t);
    EXPECT_NEAR(nll.values<float>()[i], expected[i], 1e-5 + 1e-6 * expected[i])
        << "row " << t << " of " << logits.shape().to_string() << " vocab " << vocab;
    const float* row = logits.data<float>() + t * logits.stride(0);
    EXPECT_EQ(argmax.values<int32_t>()[i], std::max_element(row, row + vocab) - row);
  }
}

TEST(CrossEntropyCuda, EqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(1);
  for (int trial = 0; trial < 300; ++trial) {
    const int64_t T = 1 + rng.below(rng.below(8) ? 5 : 700);
    const int64_t V = 1 + rng.below(T > 5 ? 3000 : rng.below(2) ? 300 : 60000), vocab = 1 + rng.below(V);
    const int64_t left = rng.below(2) ? rng.below(5) : 0;
    const Tensor wide = test::random_normal({T, left + V}, rng, 5.0f, 20.0f);
    if (rng.below(3) == 0)  // ties
      for (float& x : wide.values<float>()) x = std::round(x);
    const Tensor logits = wide.slice(1, left, left + V);
    const std::vector<int32_t> targets = random_targets(T, vocab, rng);
    const CrossEntropy on = cross_entropy(wide.to(kCuda).slice(1, left, left + V),
                                          Tensor::from_values<int32_t>(targets, {T}).to(kCuda), vocab);
    expect_reference(on, logits.clone(), targets, vocab);
  }
}

TEST(CrossEntropyCuda, RowsThatHaveNoAnswerGiveNan) {
  SSM_NEED_CUDA();
  for (const int64_t V : {4, 9000}) {
    const Tensor logits = Tensor::zeros({6, V});
    float* x = logits.data<float>();
    x[0] = NAN, x[1] = -INFINITY, x[2] = 1;                              // row 0: these are none
    for (int64_t v = 0; v < V; ++v) x[V + v] = v % 2 ? NAN : -INFINITY;  // row 1: no finite score
    for (int64_t v = 0; v < V; ++v) x[2 * V + v] = -1e30f;               // row 2: far below
    for (int64_t v = 0; v < V; ++v) x[3 * V + v] = v == 2 ? 3e38f : -3e38f;
    const std::vector<int32_t> targets{2, -1, 1, 2, static_cast<int32_t>(V), -2};
    const CrossEntropy on =
        cross_entropy(logits.to(kCuda), Tensor::from_values<int32_t>(targets, {6}).to(kCuda), V);
    const Tensor nll = on.nll.to(kCpu), argmax = on.argmax.to(kCpu);
    const auto n = nll.values<float>();
    const auto best = argmax.values<int32_t>();
    EXPECT_NEAR(n[0], std::log(1 + static_cast<double>(V - 3) * std::exp(-1.0)), 1e-5);
    EXPECT_NEAR(n[2], std::log(static_cast<double>(V)), 1e-5);
    EXPECT_EQ(n[3], 0);
    EXPECT_TRUE(std::isnan(n[1]) && std::isnan(n[4]) && std::isnan(n[5]));
    EXPECT_EQ(std::vector<int32_t>(best.begin(), best.end()), (std::vector<int32_t>{2, -1, 0, 2, 0, 0}));
  }
}

TEST(CrossEntropyCuda, ReplaysWithOtherInputs) {
  SSM_NEED_CUDA();
  Rng rng(3);
  const int64_t T = 3, V = 5000;
  const Tensor logits = Tensor::zeros({T, V}, DType::f32, kCuda),
               targets = Tensor::zeros({T}, DType::i32, kCuda);
  Arena arena;
  const ArenaScope scope(&arena);
  cross_entropy(logits, targets, V);  // takes its tensors' memory, as none can be taken while capturing
  CrossEntropy on;
  const Graph graph([&] { on = cross_entropy(logits, targets, V); });
  for (int trial = 0; trial < 4; ++trial) {
    const Tensor now = test::random_normal({T, V}, rng, 4.0f);
    const std::vector<int32_t> ids = random_targets(T, V, rng);
    copy_bytes(logits.raw(), kCuda, now.raw(), kCpu, now.bytes());
    copy_bytes(targets.raw(), kCuda, ids.data(), kCpu, targets.bytes());
    graph.replay();
    expect_reference(on, now, ids, V);
  }
}

}  // namespace
}  // namespace ssm
