// How large each input of a matrix product is: the mean square of a column of x over all rows that were seen,
// which is how much an error in that column of the matrix counts.
#pragma once

#include <vector>

#include "ssm/core/tensor.h"

namespace ssm::nn {

class ColumnMoments {
 public:
  void add(const Tensor& x);  // [T, K] f32, on the host
  // Of K columns, or nothing where no row was seen.
  std::vector<float> means() const;

 private:
  std::vector<double> sums_;  // of squares
  int64_t rows_ = 0;
};

}  // namespace ssm::nn
