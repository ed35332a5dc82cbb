// Between Python's arrays and tensors, without a copy in either direction. NumPy arrays and whatever speaks
// DLPack (torch, JAX, CuPy) come in; NumPy arrays go out, or where NumPy has no such type or memory (bf16, a
// card) a DLPack object that torch.from_dlpack takes.
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

using InArray = nb::ndarray<nb::ro>;  // read only
using InOutArray = nb::ndarray<>;     // written in place
using OptionalIn = std::optional<InArray>;

// The tensor keeps the Python object alive. Throws Error, naming `what`, for a type or strides that tensors
// do not have.
Tensor tensor_of(const InArray& array, const char* what);
Tensor tensor_of(const InOutArray& array, const char* what);
Tensor tensor_of(const OptionalIn& array, const char* what);  // undefined for None

nb::object array_of(const Tensor& tensor);  // keeps the tensor alive; None for an undefined one

std::span<const int32_t> ids_of(const Tensor& ids, const char* what);  // of a contiguous i32 [T] on the host

// What `work` returns, while other threads of Python run.
template <class F>
auto unlocked(F&& work) {
  const nb::gil_scoped_release released;
  return work();
}

// Raises KeyboardInterrupt where Ctrl-C was pressed; callable with or without the GIL.
void check_interrupt();

}  // namespace ssm::python
