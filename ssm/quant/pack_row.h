// One row of weights to the bytes of a packed row.
#pragma once

#include <cstddef>
#include <vector>

#include "ssm/quant/fit.h"
#include "ssm/quant/format.h"

namespace ssm {

// A row and its importance (empty: every column counts 1) as fits want it.
class PreparedRow {
 public:
  PreparedRow(int64_t K, std::span<const float> importance);
  // The K next weights.
  void set(const float* weights);
  Run run(int64_t k, int64_t n) const { return {x_.data() + k, w_.data() + k, wx_.data() + k, n}; }
  int64_t size() const { return K_; }

 private:
  int64_t K_;
  std::vector<float> x_, w_, wx_;
};

void pack_row(const QuantFormat& format, const PreparedRow& row,
              std::byte* out);  // row_bytes(format, K) bytes

}  // namespace ssm
