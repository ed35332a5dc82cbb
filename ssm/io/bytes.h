// Bytes of a model file with the name that error messages use: the input of every reader of this room.
// Readers never trust them: offsets and counts are checked against `data` before anything is allocated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "ssm/core/printable.h"
#include "ssm/core/tensor.h"

namespace ssm::io {

struct Bytes {
  std::span<const std::byte> data;
  std::shared_ptr<const void> owner;  // keeps `data` alive; empty when the caller does
  std::string name;

  size_t size() const { return data.size(); }
  std::string_view text() const { return {reinterpret_cast<const char*>(data.data()), data.size()}; }
};

// A little-endian number at `offset`; the caller has checked that it is there.
template <class T>
T load_le(std::span<const std::byte> data, size_t offset) {
  static_assert(std::endian::native == std::endian::little);
  T value;
  std::memcpy(&value, data.data() + offset, sizeof(T));
  return value;
}

// True when [offset, offset + size) lies within `total` bytes.
inline bool fits(uint64_t offset, uint64_t size, uint64_t total) {
  return offset <= total && size <= total - offset;
}

// A view of [offset, ...) where the file's alignment allows one, otherwise an aligned copy. The caller has
// checked the range.
Tensor tensor_at(const Bytes& bytes, size_t offset, const Shape& shape, DType dtype);

}  // namespace ssm::io
