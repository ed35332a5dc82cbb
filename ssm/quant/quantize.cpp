#include "ssm/quant/quantize.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ssm/core/parallel.h"
#include "ssm/quant/pack_row.h"

namespace ssm {
namespace {

// Scales are f16 and codes at least four bits: 7 steps of the largest scale.
constexpr float kLargestWeight = 7 * 65504.0f;
// No column counts less than this part of the mean: what a text did not use may be used by another.
constexpr float kLeastImportance = 1e-3f;

// Scaled to a mean of 1; empty stays empty.
std::vector<float> normalised(std::span<const float> importance, int64_t K) {
  if (importance.empty()) return {};
  SSM_CHECK(std::ssize(importance) == K, "quantize: {} importances for {} columns", importance.size(), K);
  double sum = 0;
  for (const float value : importance) {
    SSM_CHECK(std::isfinite(value) && value >= 0, "quantize: an importance is {}", value);
    sum += static_cast<double>(value);
  }
  if (sum == 0) return {};
  const auto mean = sum / static_cast<double>(K);
  std::vector<float> result;
  result.reserve(importance.size());
  for (const float value : importance)
    result.push_back(std::max(static_cast<float>(static_cast<double>(value) / mean), kLeastImportance));
  return result;
}

void check_row(std::span<const float> row, int64_t n) {
  for (size_t k = 0; k < row.size(); ++k) {
    SSM_CHECK(std::isfinite(row[k]), "the weight at [{}, {}] is {}", n, k, row[k]);
    SSM_CHECK(std::abs(row[k]) <= kLargestWeight, "the weight at [{}, {}] is {}, too large for an f16 scale",
              n, k, row[k]);
  }
}

}  // namespace

bool is_writable(QuantType type) { return type != QuantType::q2_k && type != QuantType::q3_k; }

QuantizedTensor quantize(const Tensor& weights, const QuantFormat& format,
                         std::span<const float> importance) {
  SSM_CHECK(weights.defined() && weights.rank() == 2 && weights.stride(1) == 1 && !weights.device().is_cuda(),
            "quantize: expected a matrix on the host, its rows contiguous");
  SSM_CHECK(is_writable(format.type), "{} is read, not written", name_of(format));
  const int64_t N = weights.size(0), K = weights.size(1), stride = row_bytes(format, K);
  const std::vector<float> w = normalised(importance, K);
  Tensor bytes = Tensor::empty({N, stride}, DType::u8);
  dispatch_float(weights.dtype(), "quantize", [&](auto zero) {
    using T = decltype(zero);
    parallel_for(N, std::max<int64_t>(1, 4096 / K), [&](int64_t begin, int64_t end) {
      PreparedRow row(K, w);
      std::vector<float> values(static_cast<size_t>(K));
      for (int64_t n = begin; n < end; ++n) {
        const T* from = weights.data<T>() + n * weights.stride(0);
        for (size_t k = 0; k < values.size(); ++k) values[k] = to_float(from[k]);
        check_row(values, n);
        row.set(values.data());
        pack_row(format, row, bytes.raw() + n * stride);
      }
    });
  });
  return packed_view(format, weights.shape(), bytes);
}

}  // namespace ssm
