#include "ssm/ops/embedding/embedding.h"

#include "ssm/ops/dispatch.h"
#include "ssm/ops/embedding/embedding_cpu.h"
#include "ssm/ops/embedding/embedding_cuda.h"

namespace ssm {

Tensor embedding(const Tensor& ids, const Weight& weight) {
  const Tensor& table = std::get<Tensor>(weight);
  SSM_CHECK(ids.defined() && ids.rank() == 1, "embedding: ids are not a vector");
  SSM_CHECK(table.defined() && table.rank() == 2 && table.contiguous(), "embedding: weight is not a matrix");
  SSM_CHECK(ids.dtype() == DType::i32 && ids.contiguous(), "embedding: ids are {}, expected contiguous i32",
            name_of(ids.dtype()));
  SSM_CHECK(table.device() == ids.device(), "embedding: weight is on {}, ids on {}", name_of(table.device()),
            name_of(ids.device()));
  const int64_t vocab = table.size(0);
  for (int64_t t = 0; !ids.device().is_cuda() && t < ids.size(0); ++t) {
    const int32_t id = ids.values<int32_t>()[static_cast<size_t>(t)];
    SSM_CHECK(id >= 0 && id < vocab, "token {} at position {} is outside the vocabulary of {}", id, t, vocab);
  }
  Tensor y = Tensor::empty({ids.size(0), table.size(1)}, DType::f32, ids.device());
  SSM_DISPATCH(ids.device(), embedding(ids, table, y));
  return y;
}

}  // namespace ssm
