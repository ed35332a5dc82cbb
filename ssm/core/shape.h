// Shape and strides: up to kMaxRank signed 64-bit extents, in elements.
#pragma once

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "ssm/core/error.h"

namespace ssm {

class Shape {
 public:
  static constexpr int kMaxRank = 6;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : Shape(std::span(dims.begin(), dims.size())) {}
  explicit Shape(std::span<const int64_t> dims) : rank_(static_cast<int>(dims.size())) {
    SSM_CHECK(dims.size() <= kMaxRank, "a shape of rank {} (at most {})", dims.size(), kMaxRank);
    std::copy(dims.begin(), dims.end(), dims_.begin());
  }

  int rank() const { return rank_; }
  int64_t operator[](int i) const { return dims_[static_cast<size_t>(i)]; }
  int64_t& operator[](int i) { return dims_[static_cast<size_t>(i)]; }
  const int64_t* begin() const { return dims_.data(); }
  const int64_t* end() const { return dims_.data() + rank_; }
  bool operator==(const Shape& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }

  // Product of the extents; throws when one is negative or the product overflows.
  int64_t numel() const {
    int64_t n = 1;
    for (const int64_t d : *this) {
      SSM_CHECK(d >= 0 && !__builtin_mul_overflow(n, d, &n), "shape {} has no valid size", to_string());
    }
    return n;
  }

  std::string to_string() const { return fmt::format("[{}]", fmt::join(begin(), end(), ", ")); }

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

}  // namespace ssm

template <>
struct fmt::formatter<ssm::Shape> : fmt::formatter<std::string> {
  auto format(const ssm::Shape& shape, fmt::format_context& context) const {
    return fmt::formatter<std::string>::format(shape.to_string(), context);
  }
};
