// embedding on a card: equal to the reference, since nothing is rounded.
#include "ssm/core/graph.h"
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/ops/embedding/embedding.h"
#include "ssm/ops/embedding/embedding_reference.h"
#include "ssm/ops/test_packed.h"
#include "ssm/quant/card_layout.h"
#include "ssm/quant/dequantize.h"

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

TEST(EmbeddingCuda, PackedRowsAreTheDequantizedOnes) {
  SSM_NEED_CUDA();
  Rng rng(4);
  for (const QuantFormat& format : test::packed_formats()) {
    const int64_t V = 1 + rng.below(100), M = fits(format, 1) ? 1 + rng.below(900) : 256 * (1 + rng.below(5));
    const QuantizedTensor table = test::random_packed(format, V, M, rng);
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < 30; ++t) ids.push_back(static_cast<int32_t>(rng.below(V)));
    ids[7] = static_cast<int32_t>(V);
    const Tensor y =
        embedding(Tensor::from_values<int32_t>(ids, {30}).to(kCuda), Weight{to_card(table, kCuda)}).to(kCpu);
    const Tensor rows = dequantize(table);
    for (int64_t t = 0; t < 30; ++t) {
      if (t == 7)
        EXPECT_TRUE(std::isnan(y.data<float>()[t * M])) << name_of(format);
      else
        EXPECT_TRUE(same_bits(y.slice(0, t, t + 1),
                              rows.slice(0, ids[static_cast<size_t>(t)], ids[static_cast<size_t>(t)] + 1)))
            << name_of(format) << " " << V << " " << M;
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

// dweight is a sum of f32, of rows rounded to their type beforehand: 2e-6. Few ids of many tokens, many of
// few, more tokens than are sorted at once, ids outside the vocabulary; the same bits again.
TEST(EmbeddingBackwardCuda, EqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(3);
  for (int trial = 0; trial < 60; ++trial) {
    const DType dtype = std::array{DType::f32, DType::bf16, DType::f16}[static_cast<size_t>(trial % 3)];
    const int64_t V = 1 + rng.below(rng.below(2) ? 5 : 3000), M = 1 + rng.below(rng.below(2) ? 70 : 1500);
    const int64_t T = trial == 7 ? 40000 : 1 + rng.below(rng.below(3) ? 60 : 1500),
                  left = rng.below(2) ? rng.below(9) : 0;
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < T; ++t) ids.push_back(static_cast<int32_t>(rng.below(V)));
    const Tensor wide = test::rounded(test::random_normal({T, left + M}, rng), dtype);
    const Tensor dweight = test::random_normal({V, M}, rng);
    std::vector<double> expected = test::to_doubles(dweight);
    reference::embedding_backward(ids, test::to_doubles(wide.slice(1, left, left + M).clone()), M, expected);
    const Tensor on_ids = Tensor::from_values<int32_t>(ids, {T}).to(kCuda);
    const Tensor dy = wide.to(dtype).to(kCuda).slice(1, left, left + M);
    const Tensor on = dweight.to(kCuda), again = dweight.to(kCuda);
    embedding_backward(on_ids, dy, on);
    embedding_backward(on_ids, dy, again);
    EXPECT_LT(test::card_error(on, expected), T > 2000 ? 1e-5 : 2e-6)
        << T << " " << V << " " << M << " " << name_of(dtype);
    EXPECT_TRUE(test::same_bits(on.to(kCpu), again.to(kCpu)));
  }
}

TEST(EmbeddingBackwardCuda, LeavesOutIdsOutsideTheVocabulary) {
  SSM_NEED_CUDA();
  const std::vector<int32_t> ids{-1, 2, 4, 2, INT32_MIN, INT32_MAX};
  Tensor dy = Tensor::empty({6, 5});
  for (int64_t i = 0; i < 30; ++i) dy.data<float>()[i] = 1;
  const Tensor dweight = Tensor::zeros({4, 5}, DType::f32, kCuda);
  embedding_backward(Tensor::from_values<int32_t>(ids, {6}).to(kCuda), dy.to(kCuda), dweight);
  const Tensor back = dweight.to(kCpu);
  for (int64_t i = 0; i < 20; ++i) EXPECT_EQ(back.data<float>()[i], i / 5 == 2 ? 2.0f : 0.0f);
}

}  // namespace
}  // namespace ssm
