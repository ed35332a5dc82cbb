#include "ssm/io/bytes.h"

namespace ssm::io {

Tensor tensor_at(const Bytes& bytes, size_t offset, const Shape& shape, DType dtype) {
  const std::byte* data = bytes.data.data() + offset;
  if (reinterpret_cast<uintptr_t>(data) % size_of(dtype) == 0) {
    return Tensor::from_memory(data, shape, dtype, bytes.owner);
  }
  const ArenaScope heap(nullptr);  // a weight outlives the step that happens to be running
  Tensor copy = Tensor::empty(shape, dtype);
  if (copy.bytes() > 0) std::memcpy(copy.raw(), data, copy.bytes());
  return copy;
}

}  // namespace ssm::io
