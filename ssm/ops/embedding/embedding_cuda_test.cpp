// embedding on a card: equal to the reference, since nothing is rounded.
#include "ssm/core/graph.h"
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/ops/embedding/embedding.h"
#include "ssm/ops/embedding/embedding_reference.h"

namespace ssm {
namespace {

TEST(EmbeddingCuda, EqualsTheReferenceInEveryDtype) {
  SSM_NEED_CUDA();
  Rng rng(1);
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (int trial = 0; trial < 60; ++trial) {
      const int64_t V = 1 + rng.below(500), M = 1 + rng.below(rng.below(2) ? 70 : 5000),
                    T = 1 + rng.below(300);
      const Tensor weight = test::random_normal({V, M}, rng).to(dtype);
      std::vector<int32_t> ids;
      for (int64_t t = 0; t < T; ++t) ids.push_back(static_cast<int32_t>(rng.below(V)));
      const Tensor y = embedding(Tensor::from_values<int32_t>(ids, {T}).to(kCuda), Weight{weight.to(kCuda)});
      EXPECT_EQ(to_doubles(y.to(kCpu)), reference::embedding(ids, to_doubles(weight), M)) << V << " " << M;
    }
  }
}

TEST(EmbeddingCuda, AnIdOutsideTheVocabularyGivesNan) {
  SSM_NEED_CUDA();
  for (const int64_t M : {3, 8}) {
    const std::vector<int32_t> ids{0, 4, -1, 3, INT32_MIN};
    const Tensor y = embedding(Tensor::from_values<int32_t>(ids, {5}).to(kCuda),
                               Weight{Tensor::zeros({4, M}, DType::bf16, kCuda)})
                         .to(kCpu);
    for (int64_t i = 0; i < y.numel(); ++i) {
      const int32_t id = ids[static_cast<size_t>(i / M)];
      EXPECT_EQ(std::isnan(y.data<float>()[i]), id < 0 || id > 3) << i;
    }
  }
}

TEST(EmbeddingCuda, ReplaysWithOtherIds) {
  SSM_NEED_CUDA();
  Rng rng(2);
  const Tensor weight = test::random_normal({100, 64}, rng), ids = Tensor::zeros({4}, DType::i32, kCuda);
  const Weight table{weight.to(kCuda)};
  Arena arena;
  const ArenaScope scope(&arena);
  embedding(ids, table);  // takes its result's memory, as none can be taken while capturing
  Tensor y;
  const Graph graph([&] { y = embedding(ids, table); });
  for (int trial = 0; trial < 5; ++trial) {
    std::vector<int32_t> now;
    for (int64_t t = 0; t < 4; ++t) now.push_back(static_cast<int32_t>(rng.below(100)));
    copy_bytes(ids.raw(), kCuda, now.data(), kCpu, ids.bytes());
    graph.replay();
    EXPECT_EQ(to_doubles(y.to(kCpu)), reference::embedding(now, to_doubles(weight), 64));
  }
}

}  // namespace
}  // namespace ssm
