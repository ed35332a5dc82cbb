// The formula's constants, computed in double for every backend.
#pragma once

#include <cmath>

#include "ssm/ops/adamw/adamw.h"

namespace ssm {

struct AdamWFactors {
  float decay;         // 1 - lr weight_decay
  float beta1, rest1;  // and 1 - beta1
  float beta2, rest2;
  float rate;        // lr / (1 - beta1^step)
  float correction;  // 1 / sqrt(1 - beta2^step)
  float eps;
};

inline AdamWFactors factors_of(const AdamW& o) {
  const double lr = o.lr, b1 = o.beta1, b2 = o.beta2, step = static_cast<double>(o.step);
  return {.decay = static_cast<float>(1 - lr * o.weight_decay),
          .beta1 = o.beta1,
          .rest1 = static_cast<float>(1 - b1),
          .beta2 = o.beta2,
          .rest2 = static_cast<float>(1 - b2),
          .rate = static_cast<float>(lr / (1 - std::pow(b1, step))),
          .correction = static_cast<float>(1 / std::sqrt(1 - std::pow(b2, step))),
          .eps = o.eps};
}

}  // namespace ssm
