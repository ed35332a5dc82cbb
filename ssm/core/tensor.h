// Tensor: shared storage, shape, strides, dtype, device. A cheap handle: copies share the storage, and a
// const Tensor is a const handle, not const data (weights mapped from a file lie in read-only pages).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "ssm/core/allocator.h"
#include "ssm/core/device.h"
#include "ssm/core/dtype.h"
#include "ssm/core/shape.h"

namespace ssm {

struct TapeNode;  // autograd

class Tensor {
 public:
  Tensor() = default;  // undefined: an absent bias, gate or initial state

  // From the current allocator; `empty` leaves the bytes as they are.
  static Tensor empty(const Shape& shape, DType dtype = DType::f32, Device device = kCpu);
  static Tensor zeros(const Shape& shape, DType dtype = DType::f32, Device device = kCpu);
  // Lies as `t` does where that is dense (a transposed one's is transposed), else row by row. Undefined for
  // an undefined one.
  static Tensor empty_like(const Tensor& t, DType dtype, Device device);
  static Tensor empty_like(const Tensor& t) { return empty_like(t, t.dtype(), t.device()); }
  static Tensor zeros_like(const Tensor& t, DType dtype);
  // A contiguous tensor over memory that `owner` keeps alive.
  static Tensor from_memory(const void* data, const Shape& shape, DType dtype,
                            std::shared_ptr<const void> owner, Device device = kCpu);
  template <class T>
  static Tensor from_values(std::span<const T> values, const Shape& shape);

  bool defined() const { return data_ != nullptr; }
  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank(); }
  int64_t size(int dim) const { return shape_[check_dim(dim)]; }      // negative dims count from the end
  int64_t stride(int dim) const { return strides_[check_dim(dim)]; }  // in elements
  const Shape& strides() const { return strides_; }
  int64_t numel() const { return shape_.numel(); }
  size_t bytes() const { return static_cast<size_t>(numel()) * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  bool contiguous() const;
  bool dense() const;  // without gaps, its dimensions in whatever order: numel() elements from raw() on

  std::byte* raw() const { return data_; }
  template <class T>
  T* data() const {
    SSM_CHECK(defined() && dtype_of<T>() == dtype_, "tensor {} of {} read as {}", shape_, name_of(dtype_),
              name_of(dtype_of<T>()));
    return reinterpret_cast<T*>(data_);
  }
  template <class T>
  std::span<T> values() const {  // of a contiguous tensor
    SSM_CHECK(contiguous(), "tensor {} is not contiguous", shape_);
    return {data<T>(), static_cast<size_t>(numel())};
  }

  // Views: the storage is shared. slice() keeps [begin, end) of a dimension, select() drops the dimension.
  Tensor view(const Shape& shape) const;
  Tensor slice(int dim, int64_t begin, int64_t end) const;
  Tensor select(int dim, int64_t index) const;
  Tensor transpose(int a, int b) const;
  // The same memory read with another shape and strides, from `offset` elements on; the caller answers for
  // them.
  Tensor as_strided(const Shape& shape, const Shape& strides, int64_t offset) const;
  Tensor borrowed() const;  // does not keep the memory alive

  // What a tape knows of this tensor and of every view of it; null: no gradient is asked of it. A view
  // carries its base's, a copy none (ssm/autograd/tape.h).
  const std::shared_ptr<TapeNode>& tape_node() const { return tape_node_; }
  void set_tape_node(std::shared_ptr<TapeNode> node) { tape_node_ = std::move(node); }
  // Whether no other tensor shares the memory: not even a view of it.
  bool sole_owner() const { return owner_.use_count() == 1; }

  // Copies. to() converts between f32, bf16 and f16, or moves between devices, and returns *this when there
  // is nothing to do. Moved to another device a dense tensor keeps its strides. A card moves tensors
  // without gaps, clones contiguous ones, and has types converted on the host.
  Tensor clone() const;
  Tensor row_major() const;  // *this where it is contiguous, else a copy that is
  Tensor to(DType dtype) const;
  Tensor to(Device device) const;

 private:
  int check_dim(int dim) const {
    const int d = dim < 0 ? dim + shape_.rank() : dim;
    SSM_CHECK(d >= 0 && d < shape_.rank(), "dimension {} of a tensor {}", dim, shape_);
    return d;
  }

  std::shared_ptr<const void> owner_;
  std::shared_ptr<TapeNode> tape_node_;
  std::byte* data_ = nullptr;
  Shape shape_;
  Shape strides_;
  DType dtype_ = DType::f32;
  Device device_;
};

template <class T>
Tensor Tensor::from_values(std::span<const T> values, const Shape& shape) {
  Tensor t = empty(shape, dtype_of<T>());
  SSM_CHECK(static_cast<int64_t>(values.size()) == t.numel(), "{} values for a tensor {}", values.size(),
            shape);
  std::copy(values.begin(), values.end(), t.data<T>());
  return t;
}

}  // namespace ssm
