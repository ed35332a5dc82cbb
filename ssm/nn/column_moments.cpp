#include "ssm/nn/column_moments.h"

namespace ssm::nn {

void ColumnMoments::add(const Tensor& x) {
  SSM_CHECK(x.dtype() == DType::f32 && !x.device().is_cuda(),
            "moments are taken of f32 on the host, not {} on {}", name_of(x.dtype()), name_of(x.device()));
  sums_.resize(static_cast<size_t>(x.size(1)), 0.0);
  for (int64_t t = 0; t < x.size(0); ++t) {
    const float* const row = x.data<float>() + t * x.stride(0);
    for (size_t k = 0; k < sums_.size(); ++k)
      sums_[k] += static_cast<double>(row[k]) * static_cast<double>(row[k]);
  }
  rows_ += x.size(0);
}

std::vector<float> ColumnMoments::means() const {
  std::vector<float> result;
  if (rows_ == 0) return result;
  result.reserve(sums_.size());
  for (const double sum : sums_) result.push_back(static_cast<float>(sum / static_cast<double>(rows_)));
  return result;
}

}  // namespace ssm::nn
