#include "ssm/ops/elementwise/elementwise_cpu.h"

#include <cmath>
#include <cstring>

namespace ssm::cpu {

void negative_exp(const Tensor& x, const Tensor& y) {
  for (int64_t i = 0; i < x.numel(); ++i) y.data<float>()[i] = -std::exp(x.data<float>()[i]);
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
