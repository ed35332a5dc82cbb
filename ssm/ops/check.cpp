#include "ssm/ops/check.h"

namespace ssm {

void check_operand(std::string_view op, std::string_view name, const Tensor& x, const Shape& shape) {
  SSM_CHECK(x.defined(), "{}: {} is missing, expected {}", op, name, shape);
  SSM_CHECK(x.shape() == shape, "{}: {} has shape {}, expected {}", op, name, x.shape(), shape);
  SSM_CHECK(x.dtype() == DType::f32, "{}: {} is {}, expected f32", op, name, name_of(x.dtype()));
  SSM_CHECK(x.rank() == 0 || x.size(-1) <= 1 || x.stride(-1) == 1,
            "{}: the last dimension of {} {} is not contiguous", op, name, shape);
}

void check_state(std::string_view op, const Tensor& state, const SequenceBatch& batch, const Shape& row) {
  if (!state.defined()) return;
  bool fits = state.rank() == row.rank() + 1 && state.size(0) > batch.max_slot();
  for (int d = 0; fits && d < row.rank(); ++d) fits = state.size(d + 1) == row[d];
  SSM_CHECK(fits, "{}: state has shape {}, expected [more than {}, {}]", op, state.shape(), batch.max_slot(),
            fmt::join(row.begin(), row.end(), ", "));
  SSM_CHECK(state.dtype() == DType::f32 && state.contiguous(), "{}: state is not contiguous f32", op);
}

}  // namespace ssm
