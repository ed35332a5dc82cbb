// Random operands for op tests and benches, and the bound they share.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "ssm/core/parallel.h"
#include "ssm/core/rng.h"
#include "ssm/core/tensor.h"
#include "ssm/ops/sequence_batch.h"

namespace ssm::test {

inline Tensor random_normal(const Shape& shape, Rng& rng, float scale = 1.0f, float mean = 0.0f) {
  Tensor t = Tensor::empty(shape);
  for (float& x : t.values<float>()) x = mean + scale * rng.normal();
  return t;
}

// `used` of the slots 0 .. all - 1, in any order.
inline std::vector<int32_t> slots_in_any_order(int64_t used, int64_t all, Rng& rng) {
  std::vector<int32_t> slots(static_cast<size_t>(all));
  std::iota(slots.begin(), slots.end(), 0);
  for (size_t i = slots.size(); i-- > 1;)
    std::swap(slots[i], slots[static_cast<size_t>(rng.below(static_cast<int64_t>(i) + 1))]);
  slots.resize(static_cast<size_t>(used));
  return slots;
}

inline std::vector<double> to_doubles(const Tensor& t) {
  const Tensor flat = t.to(DType::f32).clone();
  const auto values = flat.values<float>();
  return {values.begin(), values.end()};
}

// Largest |a - b| / (|b| + scale), scale the root mean square of b: relative, without blowing up at zeros.
inline double relative_error(const Tensor& a, const std::vector<double>& b) {
  const std::vector<double> av = to_doubles(a);
  double square = 0, worst = 0;
  for (const double x : b) square += x * x;
  const double scale = std::sqrt(square / static_cast<double>(std::max<size_t>(1, b.size()))) + 1e-30;
  if (av.size() != b.size()) return INFINITY;
  for (size_t i = 0; i < b.size(); ++i) {
    const double error = std::abs(av[i] - b[i]) / (std::abs(b[i]) + scale);
    worst = std::isfinite(error) ? std::max(worst, error) : INFINITY;
  }
  return worst;
}

// KL(softmax(p) || softmax(q)) of two rows of logits, nats.
inline double divergence(const Tensor& p, const Tensor& q) {
  const auto log_sum = [](std::span<const float> x) {
    const double top = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (const float v : x) sum += std::exp(v - top);
    return top + std::log(sum);
  };
  const auto a = p.values<float>(), b = q.values<float>();
  const double za = log_sum(a), zb = log_sum(b);
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::exp(a[i] - za) * ((a[i] - za) - (b[i] - zb));
  return sum;
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = a.clone(), y = b.clone();
  return x.shape() == y.shape() && x.dtype() == y.dtype() &&
         std::equal(x.raw(), x.raw() + x.bytes(), y.raw());
}

// Sets the number of threads for a scope, then restores the default.
class ThreadScope {
 public:
  explicit ThreadScope(int n) { set_num_threads(n); }
  ~ThreadScope() { set_num_threads(0); }
  ThreadScope(const ThreadScope&) = delete;
  ThreadScope& operator=(const ThreadScope&) = delete;
};

}  // namespace ssm::test
