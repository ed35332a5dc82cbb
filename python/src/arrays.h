// Between Python's arrays and tensors, without a copy in either direction. NumPy arrays and whatever speaks
// DLPack (torch, JAX, CuPy) come in, of the host or of a card; NumPy arrays go out, or where NumPy has no
// such type or memory (bf16, a card) a DlpackArray.
//
// On a card the library has a stream of its own. An array that comes in is asked for on that stream, so its
// producer lets it wait for what it still computes; one that goes out lets the stream of whoever takes it
// wait for ours, and memory that comes back is used again after what that stream had to do. What was read of
// an array that came in may still be read when a call returns: to take a result orders the two, synchronize()
// does where there is none.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <span>

#include "ssm/core/tensor.h"

namespace ssm::python {

namespace nb = nanobind;

// Arguments. What they are is seen in tensor_of, whose errors name them.
struct InArray {  // read only
  nb::object array;
};
struct InOutArray {  // written in place
  nb::object array;
};
using OptionalIn = std::optional<InArray>;

// A tensor for whoever speaks DLPack.
class DlpackArray {
 public:
  explicit DlpackArray(Tensor tensor) : tensor_(std::move(tensor)) {}
  const Tensor& tensor() const { return tensor_; }

  // The protocol's __dlpack__ and __dlpack_device__. `stream`: who takes it works there; none is the default
  // stream, -1 asks for no order.
  nb::object dlpack(const std::optional<int64_t>& stream, const nb::object& max_version,
                    const std::optional<std::pair<int, int>>& device, const std::optional<bool>& copy) const;
  std::pair<int, int> dlpack_device() const;
  nb::object numpy() const;  // on the host, bf16 as f32

 private:
  Tensor tensor_;
};

// The tensor keeps the Python object alive. Throws Error, naming `what`, for what is no array, or has a type,
// strides or a device that tensors do not have here.
Tensor tensor_of(const InArray& array, const char* what);
Tensor tensor_of(const InOutArray& array, const char* what);
Tensor tensor_of(const OptionalIn& array, const char* what);  // undefined for None

void bind_arrays(nb::module_& m);

nb::object array_of(const Tensor& tensor);  // keeps the tensor alive; None for an undefined one

std::span<const int32_t> ids_of(const Tensor& ids, const char* what);  // of a contiguous i32 [T] on the host

// What `work` returns, while other threads of Python run.
template <class F>
auto unlocked(F&& work) {
  const nb::gil_scoped_release released;
  return work();
}

// Raises KeyboardInterrupt where Ctrl-C was pressed, looking every 20 ms; callable with or without the GIL.
void check_interrupt();

}  // namespace ssm::python

namespace nanobind::detail {

template <class Argument>
struct array_argument_caster {
  NB_TYPE_CASTER(Argument, const_name("numpy.typing.ArrayLike"))
  bool from_python(handle source, uint32_t, cleanup_list*) noexcept {
    if (source.is_none()) return false;
    value.array = borrow(source);
    return true;
  }
};

template <>
struct type_caster<ssm::python::InArray> : array_argument_caster<ssm::python::InArray> {};
template <>
struct type_caster<ssm::python::InOutArray> : array_argument_caster<ssm::python::InOutArray> {};

}  // namespace nanobind::detail
