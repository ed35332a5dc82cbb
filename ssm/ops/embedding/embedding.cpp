#include "ssm/ops/embedding/embedding.h"

#include "ssm/autograd/tape.h"
#include "ssm/ops/check.h"
#include "ssm/ops/dispatch.h"
#include "ssm/ops/embedding/embedding_cpu.h"
#include "ssm/ops/embedding/embedding_cuda.h"

namespace ssm {
namespace {

// The host does not see a card's ids.
void check_ids(const Tensor& ids, int64_t vocab) {
  SSM_CHECK(ids.defined() && ids.rank() == 1, "embedding: ids are not a vector");
  SSM_CHECK(ids.dtype() == DType::i32 && ids.contiguous(), "embedding: ids are {}, expected contiguous i32",
            name_of(ids.dtype()));
  for (int64_t t = 0; !ids.device().is_cuda() && t < ids.size(0); ++t) {
    const int32_t id = ids.values<int32_t>()[static_cast<size_t>(t)];
    SSM_CHECK(id >= 0 && id < vocab, "token {} at position {} is outside the vocabulary of {}", id, t, vocab);
  }
}

}  // namespace

Tensor embedding(const Tensor& ids, const Weight& weight) {
  SSM_CHECK(defined(weight) && shape_of(weight).rank() == 2, "embedding: weight is not a matrix");
  const Shape& shape = shape_of(weight);
  check_ids(ids, shape[0]);
  SSM_CHECK(device_of(weight) == ids.device(), "embedding: weight is on {}, ids on {}",
            name_of(device_of(weight)), name_of(ids.device()));
  if (const auto* packed = std::get_if<QuantizedTensor>(&weight)) {
    Tensor y = Tensor::empty({ids.size(0), shape[1]}, DType::f32, ids.device());
    SSM_DISPATCH(ids.device(), embedding(ids, *packed, y));
    return y;
  }
  const Tensor& table = std::get<Tensor>(weight);
  SSM_CHECK(table.contiguous(), "embedding: the rows of weight are not contiguous");
  Tensor y = Tensor::empty({ids.size(0), shape[1]}, DType::f32, ids.device());
  SSM_DISPATCH(ids.device(), embedding(ids, table, y));
  if (!records(table)) return y;
  return record(std::move(y), [ids, table = table.borrowed()](const Tensor& dy) {
    embedding_backward(ids, dy, gradient_sum(table));
  });
}

void embedding_backward(const Tensor& ids, const Tensor& dy, const Tensor& dweight) {
  constexpr std::string_view kOp = "embedding_backward";
  SSM_CHECK(dweight.defined() && dweight.rank() == 2, "{}: dweight has shape {}, expected [V, M]", kOp,
            dweight.shape());
  check_ids(ids, dweight.size(0));
  check_first(kOp, "dy", dy, {ids.size(0), dweight.size(1)});
  check_parameter(kOp, "dweight", dweight, dweight.shape(), dy);
  SSM_CHECK(ids.device() == dy.device(), "{}: ids are on {}, dy on {}", kOp, name_of(ids.device()),
            name_of(dy.device()));
  SSM_DISPATCH(ids.device(), embedding_backward(ids, dy, dweight));
}

}  // namespace ssm
