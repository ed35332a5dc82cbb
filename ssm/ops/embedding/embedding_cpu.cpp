#include "ssm/ops/embedding/embedding_cpu.h"

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

}  // namespace ssm::cpu
