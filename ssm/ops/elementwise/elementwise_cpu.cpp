#include "ssm/ops/elementwise/elementwise_cpu.h"

#include <cmath>
#include <cstring>

namespace ssm::cpu {

void negative_exp(const Tensor& x, const Tensor& y) {
  for (int64_t i = 0; i < x.numel(); ++i) y.data<float>()[i] = -std::exp(x.data<float>()[i]);
}

void negative_exp_backward(const Tensor& y, const Tensor& dy, const Tensor& dx) {
  const bool matrix = y.rank() == 2;
  const auto at = [&](const Tensor& t, int64_t i, int64_t j) -> float& {
    return t.data<float>()[i * t.stride(0) + (matrix ? j * t.stride(1) : 0)];
  };
  for (int64_t i = 0; i < y.size(0); ++i) {
    for (int64_t j = 0; j < (matrix ? y.size(1) : 1); ++j) at(dx, i, j) += at(y, i, j) * at(dy, i, j);
  }
}

void gather_rows(const Tensor& x, const Tensor& rows, const Tensor& y) {
  const size_t size = size_of(x.dtype()), bytes = static_cast<size_t>(x.size(1)) * size;
  for (int64_t b = 0; b < rows.size(0); ++b) {
    const int64_t row = rows.dtype() == DType::i64 ? rows.data<int64_t>()[b] : rows.data<int32_t>()[b];
    SSM_CHECK(row >= 0 && row < x.size(0), "gather_rows: row {} at position {} is outside of x {}", row, b,
              x.shape());
    std::memcpy(y.raw() + static_cast<size_t>(b) * bytes,
                x.raw() + row * x.stride(0) * static_cast<int64_t>(size), bytes);
  }
}

}  // namespace ssm::cpu
