#include "python/src/arrays.h"

#include <memory>
#include <vector>

namespace ssm::python {
namespace {

DType dtype_of_array(const nb::dlpack::dtype& type, const char* what) {
  using Code = nb::dlpack::dtype_code;
  const auto is = [&](Code code, int bits) {
    return type.code == static_cast<uint8_t>(code) && type.bits == bits && type.lanes == 1;
  };
  if (is(Code::Float, 32)) return DType::f32;
  if (is(Code::Float, 16)) return DType::f16;
  if (is(Code::Float, 64)) return DType::f64;
  if (is(Code::Bfloat, 16)) return DType::bf16;
  if (is(Code::Int, 32)) return DType::i32;
  if (is(Code::Int, 64)) return DType::i64;
  if (is(Code::Int, 8)) return DType::i8;
  if (is(Code::UInt, 8) || is(Code::Bool, 8)) return DType::u8;
  fail("{}: an array of type code {} with {} bits", what, type.code, type.bits);
}

nb::dlpack::dtype array_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return nb::dtype<float>();
    case DType::f64:
      return nb::dtype<double>();
    case DType::u8:
      return nb::dtype<uint8_t>();
    case DType::i8:
      return nb::dtype<int8_t>();
    case DType::i32:
      return nb::dtype<int32_t>();
    case DType::i64:
      return nb::dtype<int64_t>();
    case DType::f16:
      return {static_cast<uint8_t>(nb::dlpack::dtype_code::Float), 16, 1};
    case DType::bf16:
      return {static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1};
  }
  fail("a tensor of an unknown type");
}

template <class Array>
Tensor wrap(const Array& array, const char* what) {
  SSM_CHECK(array.ndim() <= static_cast<size_t>(Shape::kMaxRank), "{}: an array of rank {} (at most {})",
            what, array.ndim(), Shape::kMaxRank);
  SSM_CHECK(array.device_type() == nb::device::cpu::value || array.device_type() == nb::device::cuda::value,
            "{}: an array on a device that is neither a CPU nor a CUDA card", what);
  const Device device = array.device_type() == nb::device::cuda::value
                            ? Device{DeviceType::cuda, static_cast<int8_t>(array.device_id())}
                            : kCpu;
  std::vector<int64_t> shape, strides;
  int64_t reach = 1;  // elements from the first to the last
  bool dense = true;
  for (size_t i = 0; i < array.ndim(); ++i) {
    shape.push_back(static_cast<int64_t>(array.shape(i)));
    strides.push_back(array.stride(i));
    SSM_CHECK(strides.back() >= 0, "{}: an array with negative strides", what);
    reach += (shape.back() - 1) * strides.back();
  }
  for (int64_t i = std::ssize(shape) - 1, step = 1; i >= 0; --i) {
    const auto at = static_cast<size_t>(i);
    dense = dense && (shape[at] <= 1 || strides[at] == step);
    step *= shape[at];
  }
  const Shape sizes{std::span<const int64_t>(shape)};
  if (sizes.numel() == 0) return Tensor::empty(sizes, dtype_of_array(array.dtype(), what), device);
  // The last owner may let go of it without the GIL.
  std::shared_ptr<Array> held(new Array(array), [](Array* a) {
    const nb::gil_scoped_acquire gil;
    delete a;
  });
  const DType dtype = dtype_of_array(array.dtype(), what);
  if (dense) return Tensor::from_memory(array.data(), sizes, dtype, held, device);
  return Tensor::from_memory(array.data(), {reach}, dtype, held, device)
      .as_strided(sizes, Shape{std::span<const int64_t>(strides)}, 0);
}

}  // namespace

Tensor tensor_of(const InArray& array, const char* what) { return wrap(array, what); }
Tensor tensor_of(const InOutArray& array, const char* what) { return wrap(array, what); }
Tensor tensor_of(const OptionalIn& array, const char* what) { return array ? wrap(*array, what) : Tensor(); }

nb::object array_of(const Tensor& tensor) {
  if (!tensor.defined()) return nb::none();
  const auto rank = static_cast<size_t>(tensor.rank());
  std::vector<size_t> shape(rank);
  std::vector<int64_t> strides(rank);
  for (size_t i = 0; i < rank; ++i) {
    shape[i] = static_cast<size_t>(tensor.size(static_cast<int>(i)));
    strides[i] = tensor.stride(static_cast<int>(i));
  }
  const nb::capsule owner(new Tensor(tensor), [](void* p) noexcept { delete static_cast<Tensor*>(p); });
  const nb::dlpack::dtype type = array_type(tensor.dtype());
  if (tensor.device().is_cuda() || tensor.dtype() == DType::bf16) {
    const int device = tensor.device().is_cuda() ? nb::device::cuda::value : nb::device::cpu::value;
    return nb::ndarray<>(tensor.raw(), rank, shape.data(), owner, strides.data(), type, device,
                         tensor.device().index)
        .cast();
  }
  return nb::ndarray<nb::numpy>(tensor.raw(), rank, shape.data(), owner, strides.data(), type).cast();
}

std::span<const int32_t> ids_of(const Tensor& ids, const char* what) {
  SSM_CHECK(ids.rank() == 1 && ids.dtype() == DType::i32 && !ids.device().is_cuda(),
            "{}: expected int32 [T] on the host, not {} of {}", what, ids.shape(), name_of(ids.dtype()));
  return ids.values<int32_t>();
}

void check_interrupt() {
  const nb::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

}  // namespace ssm::python
