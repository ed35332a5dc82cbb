// What the three norms' backwards are to a backend: one op.
#pragma once

#include "ssm/core/tensor.h"

namespace ssm {

struct RmsNormBackward {
  Tensor x, z;       // [T, M]; what is normed is x, or where z is defined x * silu(z)
  Tensor weight;     // [M], or undefined
  Tensor dy;         // [T, M]
  Tensor dresidual;  // [T, M] f32, or undefined; du is added to it, and dx is the sum
  Tensor dx, dz;     // [T, M], each or undefined
  Tensor dweight;    // [M], or undefined
  int64_t groups = 1;
  float eps = 0;
};

}  // namespace ssm
