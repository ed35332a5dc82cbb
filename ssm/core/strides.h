#pragma once

#include "ssm/core/shape.h"

namespace ssm {

// In elements, of a tensor that lies row by row.
inline Shape contiguous_strides(const Shape& shape) {
  Shape strides = shape;
  int64_t step = 1;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    strides[i] = step;
    step *= shape[i];
  }
  return strides;
}

}  // namespace ssm
