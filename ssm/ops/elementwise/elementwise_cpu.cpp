#include "ssm/ops/elementwise/elementwise_cpu.h"

#include <algorithm>
#include <cmath>

#include "ssm/core/parallel.h"
#include "ssm/core/rng.h"
#include "ssm/ops/elementwise/dropout_threshold.h"

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

void add_scaled(const Tensor& y, const Tensor& x, float scale) {
  parallel_for(y.size(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* to = y.data<float>() + t * y.stride(0);
      const float* from = x.data<float>() + t * x.stride(0);
      for (int64_t i = 0; i < y.size(1); ++i) to[i] += scale * from[i];
    }
  });
}

void move_average(const Tensor& average, const Tensor& value, float weight) {
  parallel_for(value.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
    float* to = average.data<float>();
    const float* from = value.data<float>();
    for (int64_t i = begin; i < end; ++i) to[i] += (from[i] - to[i]) * weight;
  });
}

void dropout(const Tensor& x, float p, uint64_t seed, const Tensor& y) {
  const int64_t M = x.size(1), blocks = (M + 3) / 4;
  const uint32_t below = dropout_threshold(p);
  const float scale = 1.0f / (1.0f - p);
  parallel_for(x.size(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* from = x.data<float>() + t * x.stride(0);
      float* to = y.data<float>() + t * y.stride(0);
      for (int64_t i = 0; i < M; i += 4) {
        const auto draw = philox4x32(seed, 0, static_cast<uint64_t>(t * blocks + i / 4));
        for (int64_t j = i; j < std::min(i + 4, M); ++j) {
          to[j] = draw[static_cast<size_t>(j - i)] < below ? 0.0f : from[j] * scale;
        }
      }
    }
  });
}

void take_rows(const Tensor& x, const Tensor& places, const Tensor& y) {
  parallel_for(y.size(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* from = x.data<float>() + places.data<int32_t>()[i] * x.stride(0);
      std::copy_n(from, y.size(1), y.data<float>() + i * y.stride(0));
    }
  });
}

void put_rows(const Tensor& y, const Tensor& places, const Tensor& x) {
  parallel_for(y.size(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* from = y.data<float>() + i * y.stride(0);
      std::copy_n(from, y.size(1), x.data<float>() + places.data<int32_t>()[i] * x.stride(0));
    }
  });
}

}  // namespace ssm::cpu
