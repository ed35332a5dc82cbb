#include "ssm/ops/embedding/embedding_cpu.h"

#include <algorithm>

#include "ssm/core/parallel.h"
#include "ssm/quant/dequantize.h"

namespace ssm::cpu {

void embedding(const Tensor& ids, const Tensor& table, const Tensor& y) {
  const int64_t M = table.size(1);
  const auto id = ids.values<int32_t>();
  dispatch_float(table.dtype(), "embedding", [&](auto zero) {
    using T = decltype(zero);
    for (int64_t t = 0; t < ids.size(0); ++t) {
      const T* row = table.data<T>() + id[static_cast<size_t>(t)] * M;
      float* out = y.data<float>() + t * M;
      for (int64_t m = 0; m < M; ++m) out[m] = to_float(row[m]);
    }
  });
}

void embedding(const Tensor& ids, const QuantizedTensor& table, const Tensor& y) {
  const int64_t M = table.shape[1], stride = row_bytes(table.format, M);
  const auto id = ids.values<int32_t>();
  parallel_for(ids.size(0), std::max<int64_t>(1, 16384 / M), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      dequantize_row(table.format, table.bytes.raw() + id[static_cast<size_t>(t)] * stride, M,
                     y.data<float>() + t * M);
  });
}

// Columns are shared out, not rows: tokens that are equal meet in one thread, in order.
void embedding_backward(const Tensor& ids, const Tensor& dy, const Tensor& dweight) {
  constexpr int64_t kColumns = 64;
  const int64_t T = ids.size(0), M = dy.size(1);
  const int64_t grain = std::max<int64_t>(1, 65536 / (kColumns * (T + 1)));
  const auto id = ids.values<int32_t>();
  parallel_for((M + kColumns - 1) / kColumns, grain, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kColumns, last = std::min(M, end * kColumns);
    for (int64_t t = 0; t < T; ++t) {
      const float* const from = dy.data<float>() + t * dy.stride(0);
      float* const to = dweight.data<float>() + id[static_cast<size_t>(t)] * dweight.stride(0);
      for (int64_t m = first; m < last; ++m) to[m] += from[m];
    }
  });
}

}  // namespace ssm::cpu
