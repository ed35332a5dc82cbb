#include "ssm/ops/check.h"

namespace ssm {
namespace {

bool is_activation(DType dtype, Device device) {
  return dtype == DType::f32 || (device.is_cuda() && (dtype == DType::bf16 || dtype == DType::f16));
}

void check_operand(std::string_view op, std::string_view name, const Tensor& x, const Shape& shape) {
  SSM_CHECK(x.defined(), "{}: {} is missing, expected {}", op, name, shape);
  SSM_CHECK(x.shape() == shape, "{}: {} has shape {}, expected {}", op, name, x.shape(), shape);
  SSM_CHECK(x.rank() == 0 || x.size(-1) <= 1 || x.stride(-1) == 1,
            "{}: the last dimension of {} {} is not contiguous", op, name, shape);
}

void check_device(std::string_view op, std::string_view name, const Tensor& x, const Tensor& first) {
  SSM_CHECK(x.device() == first.device(), "{}: {} is on {}, the first operand on {}", op, name,
            name_of(x.device()), name_of(first.device()));
}

}  // namespace

void check_first(std::string_view op, std::string_view name, const Tensor& x, const Shape& shape) {
  check_operand(op, name, x, shape);
  SSM_CHECK(is_activation(x.dtype(), x.device()), "{}: {} is {}, expected {}", op, name, name_of(x.dtype()),
            x.device().is_cuda() ? "f32, bf16 or f16" : "f32");
}

void check_activation(std::string_view op, std::string_view name, const Tensor& x, const Shape& shape,
                      const Tensor& first) {
  check_operand(op, name, x, shape);
  SSM_CHECK(x.dtype() == first.dtype(), "{}: {} is {}, expected {}", op, name, name_of(x.dtype()),
            name_of(first.dtype()));
  check_device(op, name, x, first);
}

void check_parameter(std::string_view op, std::string_view name, const Tensor& x, const Shape& shape,
                     const Tensor& first) {
  check_operand(op, name, x, shape);
  SSM_CHECK(x.dtype() == DType::f32, "{}: {} is {}, expected f32", op, name, name_of(x.dtype()));
  check_device(op, name, x, first);
}

void check_activation_gradient(std::string_view op, std::string_view name, const Tensor& dx,
                               const Shape& shape, const Tensor& first) {
  if (dx.defined()) check_activation(op, name, dx, shape, first);
}

void check_parameter_gradient(std::string_view op, std::string_view name, const Tensor& dw,
                              const Shape& shape, const Tensor& first) {
  if (!dw.defined()) return;
  SSM_CHECK(dw.shape() == shape, "{}: {} has shape {}, expected {}", op, name, dw.shape(), shape);
  SSM_CHECK(dw.dtype() == DType::f32, "{}: {} is {}, expected f32", op, name, name_of(dw.dtype()));
  check_device(op, name, dw, first);
}

void check_initial(std::string_view op, const Tensor& initial, const SequenceBatch& batch, const Shape& row,
                   const Tensor& first, std::string_view name) {
  if (!initial.defined()) return;
  bool fits = initial.rank() == row.rank() + 1 && initial.size(0) == batch.size();
  for (int d = 0; fits && d < row.rank(); ++d) fits = initial.size(d + 1) == row[d];
  SSM_CHECK(fits, "{}: {} has shape {}, expected [{}, {}]", op, name, initial.shape(), batch.size(),
            fmt::join(row.begin(), row.end(), ", "));
  SSM_CHECK(initial.dtype() == DType::f32, "{}: {} is {}, expected f32", op, name, name_of(initial.dtype()));
  SSM_CHECK(initial.contiguous(), "{}: {} is not contiguous", op, name);
  check_device(op, name, initial, first);
}

void check_state(std::string_view op, const Tensor& state, const SequenceBatch& batch, const Shape& row,
                 const Tensor& first, bool narrow) {
  if (!state.defined()) return;
  bool fits = state.rank() == row.rank() + 1 && state.size(0) > batch.max_slot();
  for (int d = 0; fits && d < row.rank(); ++d) fits = state.size(d + 1) == row[d];
  SSM_CHECK(fits, "{}: state has shape {}, expected [more than {}, {}]", op, state.shape(), batch.max_slot(),
            fmt::join(row.begin(), row.end(), ", "));
  const bool is_narrow = state.dtype() == DType::bf16 || state.dtype() == DType::f16;
  SSM_CHECK(state.dtype() == DType::f32 || (narrow && is_narrow), "{}: state is {}, expected f32", op,
            name_of(state.dtype()));
  SSM_CHECK(state.contiguous(), "{}: state is not contiguous", op);
  check_device(op, "state", state, first);
}

void check_step_weight(std::string_view op, std::string_view name, const Weight& weight, const Shape& shape,
                       DType compute, Device device) {
  SSM_CHECK(defined(weight) && shape_of(weight) == shape && device_of(weight) == device,
            "{}: {} has shape {}, expected {} on {}", op, name, shape_of(weight), shape, name_of(device));
  const auto* dense = std::get_if<Tensor>(&weight);
  SSM_CHECK(dense == nullptr || (dense->dtype() == compute && (dense->size(1) <= 1 || dense->stride(1) == 1)),
            "{}: {} is {}, expected contiguous rows of {}", op, name, type_name(weight), name_of(compute));
}

void check_result(std::string_view op, DType dtype, Device device) {
  SSM_CHECK(is_activation(dtype, device), "{}: a result in {} on {}", op, name_of(dtype), name_of(device));
}

}  // namespace ssm
