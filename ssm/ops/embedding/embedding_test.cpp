#include "ssm/ops/embedding/embedding.h"

#include <gtest/gtest.h>

#include "ssm/core/parallel.h"
#include "ssm/ops/embedding/embedding_reference.h"
#include "ssm/ops/test_util.h"
#include "ssm/quant/dequantize.h"

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

TEST(Embedding, GivesThePackedRowsValues) {
  Rng rng(3);
  for (const QuantFormat format : {*quant_format("q4_0"), *quant_format("q6_k"), *quant_format("int4", 64)}) {
    const int64_t V = 30, M = format.type == QuantType::int4 ? 77 : 512, T = 60;
    Tensor bytes = Tensor::empty({V, row_bytes(format, M)}, DType::u8);
    for (uint8_t& byte : bytes.values<uint8_t>())
      byte = static_cast<uint8_t>(rng.below(0x60));  // no inf, no NaN
    const QuantizedTensor table = packed_view(format, {V, M}, bytes);
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < T; ++t) ids.push_back(static_cast<int32_t>(rng.below(V)));
    const Tensor y = embedding(Tensor::from_values<int32_t>(ids, {T}), Weight{table});
    EXPECT_EQ(test::to_doubles(y), reference::embedding(ids, test::to_doubles(dequantize(table)), M));
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

// Every dweight is a sum of few f32: 1e-6. Equal ids, strided rows, what was there before.
TEST(EmbeddingBackward, EqualsTheReferenceWhateverTheThreads) {
  Rng rng(2);
  for (int trial = 0; trial < 60; ++trial) {
    const int64_t V = 1 + rng.below(20), M = 1 + rng.below(300), T = 1 + rng.below(40);
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < T; ++t) ids.push_back(static_cast<int32_t>(rng.below(V)));
    const Tensor id = Tensor::from_values<int32_t>(ids, {T});
    const Tensor dy = test::random_normal({T, M + 3}, rng).slice(1, 2, M + 2);
    const Tensor dweight = test::random_normal({V, M}, rng), again = dweight.clone();
    std::vector<double> expected = test::to_doubles(dweight);
    reference::embedding_backward(ids, test::to_doubles(dy), M, expected);
    set_num_threads(1);
    embedding_backward(id, dy, dweight);
    EXPECT_LT(test::relative_error(dweight, expected), 1e-6) << V << " " << M << " " << T;
    set_num_threads(static_cast<int>(2 + rng.below(4)));
    embedding_backward(id, dy, again);
    EXPECT_TRUE(test::same_bits(dweight, again));
  }
  set_num_threads(0);
}

TEST(EmbeddingBackward, NamesWhatDoesNotFit) {
  const std::vector<int32_t> ids{0, 4};
  const Tensor id = Tensor::from_values<int32_t>(ids, {2}), dy = Tensor::zeros({2, 3});
  EXPECT_THROW(embedding_backward(id, dy, Tensor::zeros({4, 3})), Error);
  EXPECT_THROW(embedding_backward(id, dy, Tensor::zeros({5, 4})), Error);
  EXPECT_THROW(embedding_backward(id, dy, Tensor::zeros({5, 3}, DType::bf16)), Error);
}

}  // namespace
}  // namespace ssm
