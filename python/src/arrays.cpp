#include "python/src/arrays.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <type_traits>
#include <vector>

#include "ssm/core/streams.h"

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
  const Device device = array.device_type() == nb::device::cpu::value ? kCpu : kCuda;
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

bool is_numpy(nb::handle array) {
  static const PyObject* type = nb::object(nb::module_::import_("numpy").attr("ndarray")).release().ptr();
  return reinterpret_cast<const PyObject*>(Py_TYPE(array.ptr())) == type;
}

// On the host itself, or on a card that this library computes on: then asked for on its stream.
nb::object handed_over(const nb::object& array, const char* what) {
  if (is_numpy(array) || !nb::hasattr(array, "__dlpack_device__")) return array;
  const auto [type, index] = nb::cast<std::pair<int, int>>(array.attr("__dlpack_device__")());
  if (type == nb::device::cpu::value) return array;
  SSM_CHECK(type == nb::device::cuda::value, "{}: an array on a device that is neither a CPU nor a CUDA card",
            what);
  const std::string why = why_unavailable(kCuda);
  SSM_CHECK(why.empty(), "{}: an array on a card, but {}", what, why);
  SSM_CHECK(index == kCuda.index, "{}: an array on card {}, but this process computes on card {}", what,
            index, static_cast<int>(kCuda.index));
  return array.attr("__dlpack__")(nb::arg("stream") = stream_of(kCuda));
}

template <class Array>
Tensor import(const nb::object& object, const char* what) {
  if (nb::isinstance<DlpackArray>(object)) return nb::cast<const DlpackArray&>(object).tensor();
  Array array;
  SSM_CHECK(nb::try_cast(handed_over(object, what), array, false), "{}: expected an array{}, not {}", what,
            std::is_same_v<Array, nb::ndarray<>> ? " that may be written" : "",
            nb::type_name(object.type()).c_str());
  return wrap(array, what);
}

// Memory that another library reads until it lets go of it.
struct Lent {
  Tensor tensor;
  std::optional<uintptr_t> stream;  // where it is read; none: anywhere

  // A stream of somebody else may be gone by now, the driver's two cannot.
  void take_back() noexcept {
    if (!tensor.device().is_cuda()) return;
    try {
      const bool drivers = stream.has_value() && *stream <= 2;
      drivers ? wait_for_stream(tensor.device(), *stream) : synchronize_all(tensor.device());
    } catch (const Error&) {  // the process ends, and the driver went before us
    }
  }
};

nb::capsule owner_of(Lent lent) {
  return nb::capsule(new Lent(std::move(lent)), [](void* p) noexcept {
    const std::unique_ptr<Lent> back(static_cast<Lent*>(p));
    back->take_back();
  });
}

template <class... Framework>
nb::object export_to(const Tensor& tensor, const nb::capsule& owner) {
  const auto rank = static_cast<size_t>(tensor.rank());
  std::array<size_t, Shape::kMaxRank> shape{};
  std::array<int64_t, Shape::kMaxRank> strides{};
  for (size_t i = 0; i < rank; ++i) {
    shape[i] = static_cast<size_t>(tensor.size(static_cast<int>(i)));
    strides[i] = tensor.stride(static_cast<int>(i));
  }
  const int device = tensor.device().is_cuda() ? nb::device::cuda::value : nb::device::cpu::value;
  return nb::ndarray<Framework...>(tensor.raw(), rank, shape.data(), owner, strides.data(),
                                   array_type(tensor.dtype()), device, tensor.device().index)
      .cast();
}

}  // namespace

Tensor tensor_of(const InArray& array, const char* what) {
  return import <nb::ndarray<nb::ro>>(array.array, what);
}
Tensor tensor_of(const InOutArray& array, const char* what) {
  return import <nb::ndarray<>>(array.array, what);
}
Tensor tensor_of(const OptionalIn& array, const char* what) {
  return array ? tensor_of(*array, what) : Tensor();
}

nb::object DlpackArray::dlpack(const std::optional<int64_t>& stream, const nb::object& /*max_version*/,
                               const std::optional<std::pair<int, int>>& device,
                               const std::optional<bool>& copy) const {
  if (copy.value_or(false)) throw nb::buffer_error("__dlpack__: the memory itself, not a copy of it");
  if (device && *device != dlpack_device())
    throw nb::buffer_error("__dlpack__: the array stays on its device");
  Lent lent{tensor_, {}};
  if (tensor_.device().is_cuda() && stream.value_or(1) != -1) {
    lent.stream = static_cast<uintptr_t>(std::max<int64_t>(stream.value_or(1), 1));
    let_stream_wait(tensor_.device(), *lent.stream);
  }
  return export_to<>(tensor_, owner_of(std::move(lent)));
}

std::pair<int, int> DlpackArray::dlpack_device() const {
  const Device device = tensor_.device();
  return {device.is_cuda() ? nb::device::cuda::value : nb::device::cpu::value, device.index};
}

nb::object DlpackArray::numpy() const {
  const Tensor host = unlocked([&] { return tensor_.to(kCpu); });
  return array_of(host.dtype() == DType::bf16 ? host.to(DType::f32) : host);
}

nb::object array_of(const Tensor& tensor) {
  if (!tensor.defined()) return nb::none();
  if (tensor.device().is_cuda() || tensor.dtype() == DType::bf16) return nb::cast(DlpackArray(tensor));
  return export_to<nb::numpy>(tensor, owner_of({tensor, {}}));
}

void bind_arrays(nb::module_& m) {
  using nb::arg;
  const auto none = nb::none();
  nb::class_<DlpackArray>(
      m, "DlpackArray",
      "The library's memory, for what NumPy has no array for (bf16, a card) or for another call.")
      .def("__dlpack__", &DlpackArray::dlpack, nb::kw_only(), arg("stream") = none, arg("max_version") = none,
           arg("dl_device") = none, arg("copy") = none)
      .def("__dlpack_device__", &DlpackArray::dlpack_device)
      .def("numpy", &DlpackArray::numpy, "On the host, bf16 as f32.")
      .def_prop_ro("shape",
                   [](const DlpackArray& a) {
                     nb::list shape;
                     for (const int64_t n : a.tensor().shape()) shape.append(n);
                     return nb::tuple(shape);
                   })
      .def_prop_ro("dtype", [](const DlpackArray& a) { return std::string(name_of(a.tensor().dtype())); })
      .def_prop_ro("device", [](const DlpackArray& a) { return std::string(name_of(a.tensor().device())); });
  m.def(
      "wait_for_stream", [](int64_t stream) { wait_for_stream(kCuda, static_cast<uintptr_t>(stream)); },
      arg("stream"), "What is enqueued on the card from now on follows what is in this stream of it.");
  m.def(
      "synchronize", [] { unlocked([] { synchronize(kCuda); }); }, "Waits for the card.");
}

std::span<const int32_t> ids_of(const Tensor& ids, const char* what) {
  SSM_CHECK(ids.rank() == 1 && ids.dtype() == DType::i32 && !ids.device().is_cuda(),
            "{}: expected int32 [T] on the host, not {} of {}", what, ids.shape(), name_of(ids.dtype()));
  return ids.values<int32_t>();
}

void check_interrupt() {
  using Clock = std::chrono::steady_clock;
  static std::atomic<Clock::rep> looked{0};
  constexpr Clock::duration kBetweenLooks = std::chrono::milliseconds(20);
  const Clock::rep now = Clock::now().time_since_epoch().count();
  if (now - looked.load(std::memory_order_relaxed) < kBetweenLooks.count()) return;
  looked.store(now, std::memory_order_relaxed);
  const nb::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw nb::python_error();
}

}  // namespace ssm::python
