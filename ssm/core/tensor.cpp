#include "ssm/core/tensor.h"

#include <array>
#include <cstring>

#include "ssm/core/parallel.h"
#include "ssm/core/strides.h"

namespace ssm {
namespace {

constexpr int64_t kConvertGrain = 1 << 16;  // elements a thread converts at a time

// Calls f(source offset) for each element in row-major order.
template <class F>
void for_each_offset(const Shape& shape, const Tensor& t, F&& f) {
  const int64_t n = shape.numel();
  Shape index = shape;
  for (int d = 0; d < shape.rank(); ++d) index[d] = 0;
  int64_t offset = 0;
  for (int64_t i = 0; i < n; ++i) {
    f(i, offset);
    for (int d = shape.rank() - 1; d >= 0; --d) {
      offset += t.stride(d);
      if (++index[d] < shape[d]) break;
      offset -= index[d] * t.stride(d);
      index[d] = 0;
    }
  }
}

}  // namespace

Tensor Tensor::empty(const Shape& shape, DType dtype, Device device) {
  int64_t bytes = 0;
  SSM_CHECK(!__builtin_mul_overflow(shape.numel(), static_cast<int64_t>(size_of(dtype)), &bytes),
            "a tensor {} is too large", shape);
  const std::shared_ptr<std::byte> memory = allocate_bytes(static_cast<size_t>(bytes), device);
  return from_memory(memory.get(), shape, dtype, memory, device);
}

Tensor Tensor::zeros(const Shape& shape, DType dtype, Device device) {
  Tensor t = empty(shape, dtype, device);
  zero_bytes(t.raw(), device, t.bytes());
  return t;
}

Tensor Tensor::empty_like(const Tensor& t, DType dtype, Device device) {
  if (!t.defined()) return {};
  const Tensor like = empty(t.shape(), dtype, device);
  return like.as_strided(t.shape(), t.dense() ? t.strides() : like.strides(), 0);
}

Tensor Tensor::zeros_like(const Tensor& t, DType dtype) {
  Tensor zeros = empty_like(t, dtype, t.device());
  if (zeros.defined()) zero_bytes(zeros.raw(), zeros.device(), zeros.bytes());
  return zeros;
}

Tensor Tensor::from_memory(const void* data, const Shape& shape, DType dtype,
                           std::shared_ptr<const void> owner, Device device) {
  Tensor t;
  t.owner_ = std::move(owner);
  t.data_ = static_cast<std::byte*>(const_cast<void*>(data));
  t.shape_ = shape;
  t.strides_ = contiguous_strides(shape);
  t.dtype_ = dtype;
  t.device_ = device;
  return t;
}

bool Tensor::contiguous() const {
  int64_t step = 1;
  for (int i = rank() - 1; i >= 0; --i) {
    if (shape_[i] != 1 && strides_[i] != step) return false;
    step *= shape_[i];
  }
  return true;
}

bool Tensor::dense() const {
  std::array<bool, Shape::kMaxRank> placed{};
  int64_t step = 1;
  for (int i = 0; i < rank(); ++i) {
    int next = 0;  // the dimension that lies innermost of those left
    while (next < rank() &&
           (placed[static_cast<size_t>(next)] || (shape_[next] != 1 && strides_[next] != step))) {
      ++next;
    }
    if (next == rank()) return false;
    placed[static_cast<size_t>(next)] = true;
    step *= shape_[next];
  }
  return true;
}

Tensor Tensor::view(const Shape& shape) const {
  SSM_CHECK(contiguous() && shape.numel() == numel(), "tensor {} cannot be viewed as {}", shape_, shape);
  Tensor t = *this;
  t.shape_ = shape;
  t.strides_ = contiguous_strides(shape);
  return t;
}

Tensor Tensor::slice(int dim, int64_t begin, int64_t end) const {
  const int d = check_dim(dim);
  SSM_CHECK(0 <= begin && begin <= end && end <= shape_[d], "slice {}:{} of dimension {} of a tensor {}",
            begin, end, dim, shape_);
  Tensor t = *this;
  t.data_ += begin * strides_[d] * static_cast<int64_t>(size_of(dtype_));
  t.shape_[d] = end - begin;
  return t;
}

Tensor Tensor::select(int dim, int64_t index) const {
  const int d = check_dim(dim);
  const Tensor row = slice(d, index, index + 1);
  std::array<int64_t, Shape::kMaxRank> dims{}, steps{};
  int rank = 0;
  for (int i = 0; i < shape_.rank(); ++i) {
    if (i == d) continue;
    dims[static_cast<size_t>(rank)] = shape_[i];
    steps[static_cast<size_t>(rank++)] = strides_[i];
  }
  Tensor t = row;
  t.shape_ = Shape(std::span<const int64_t>(dims.data(), static_cast<size_t>(rank)));
  t.strides_ = Shape(std::span<const int64_t>(steps.data(), static_cast<size_t>(rank)));
  return t;
}

Tensor Tensor::transpose(int a, int b) const {
  const int i = check_dim(a), j = check_dim(b);
  Tensor t = *this;
  std::swap(t.shape_[i], t.shape_[j]);
  std::swap(t.strides_[i], t.strides_[j]);
  return t;
}

Tensor Tensor::as_strided(const Shape& shape, const Shape& strides, int64_t offset) const {
  Tensor t = *this;
  t.data_ += offset * static_cast<int64_t>(size_of(dtype_));
  t.shape_ = shape;
  t.strides_ = strides;
  return t;
}

Tensor Tensor::borrowed() const {
  Tensor t = *this;
  t.owner_ = nullptr;
  return t;
}

Tensor Tensor::clone() const {
  Tensor t = empty(shape_, dtype_, device_);
  if (contiguous()) {
    copy_bytes(t.raw(), device_, raw(), device_, bytes());
    return t;
  }
  SSM_CHECK(!device_.is_cuda(), "a tensor {} on a card is not contiguous and cannot be copied", shape_);
  const size_t size = size_of(dtype_);
  for_each_offset(shape_, *this, [&](int64_t to, int64_t from) {
    std::memcpy(t.raw() + static_cast<size_t>(to) * size, raw() + from * static_cast<int64_t>(size), size);
  });
  return t;
}

Tensor Tensor::row_major() const { return contiguous() ? *this : clone(); }

Tensor Tensor::to(DType dtype) const {
  if (dtype == dtype_) return *this;
  if (device_.is_cuda()) return to(kCpu).to(dtype).to(device_);
  Tensor t = empty(shape_, dtype, device_);
  dispatch_float(dtype_, "to", [&](auto from_zero) {
    dispatch_float(dtype, "to", [&](auto to_zero) {
      using From = decltype(from_zero);
      using To = decltype(to_zero);
      const From* source = data<From>();
      To* target = t.data<To>();
      if (contiguous()) {
        parallel_for(numel(), kConvertGrain, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) target[i] = from_float<To>(to_float(source[i]));
        });
        return;
      }
      for_each_offset(shape_, *this, [&](int64_t i, int64_t offset) {
        target[i] = from_float<To>(to_float(source[offset]));
      });
    });
  });
  return t;
}

// A dense tensor keeps its strides: a transposed one stays transposed.
Tensor Tensor::to(Device device) const {
  if (!defined() || device == device_) return *this;
  const Tensor source = dense() ? *this : clone();
  Tensor t = empty_like(source, dtype_, device);
  copy_bytes(t.raw(), device, source.raw(), device_, t.bytes());
  return t;
}

}  // namespace ssm
