#include "ssm/ops/embedding/embedding.h"

#include <gtest/gtest.h>

#include "ssm/ops/embedding/embedding_reference.h"
#include "ssm/ops/test_util.h"

namespace ssm {
namespace {

TEST(Embedding, EqualsTheReferenceInEveryDtype) {
  Rng rng(1);
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (int trial = 0; trial < 20; ++trial) {
      const int64_t V = 1 + rng.below(50), M = 1 + rng.below(70), T = 1 + rng.below(20);
      const Tensor weight = test::random_normal({V, M}, rng).to(dtype);
      std::vector<int32_t> ids;
      for (int64_t t = 0; t < T; ++t) ids.push_back(static_cast<int32_t>(rng.below(V)));
      const Tensor y = embedding(Tensor::from_values<int32_t>(ids, {T}), Weight{weight});
      EXPECT_EQ(test::to_doubles(y), reference::embedding(ids, test::to_doubles(weight), M)) << V << " " << M;
    }
  }
}

TEST(Embedding, NamesAnIdOutsideTheVocabulary) {
  const Weight weight{Tensor::zeros({4, 3})};
  for (const int32_t bad : {4, -1}) {
    const std::vector<int32_t> ids{0, bad};
    try {
      embedding(Tensor::from_values<int32_t>(ids, {2}), weight);
      FAIL() << "no error for " << bad;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(std::to_string(bad) + " at position 1"), std::string::npos)
          << e.what();
    }
  }
}

}  // namespace
}  // namespace ssm
