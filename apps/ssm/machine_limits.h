// What this machine can do at best, measured here and now: the yardstick of `ssm bench`.
#pragma once

#include "ssm/core/dtype.h"

namespace ssm::app {

// Bytes a second that all threads together read from memory: the sum over a buffer larger than any cache,
// best of several.
double measure_read_bandwidth();

// Floating-point operations a second of ssm::linear, 512 x 2048 x 2048, weights of `stored`, activations of
// `compute`, best of several.
double measure_gemm_rate(DType stored, DType compute);

}  // namespace ssm::app
