// What this machine can do at best, measured here and now: the yardstick of `ssm bench`.
#pragma once

#include <functional>

#include "ssm/core/device.h"
#include "ssm/core/dtype.h"

namespace ssm::app {

// Seconds of one call of body(i), i = 0, 1, 2, ..: the median of several rounds. On a card rounds are replays
// of a captured graph of many calls, so that neither launches nor waits count; a body that copies from the
// host may not be captured, and `replayed` is false: many calls, launches with them.
double seconds_of(Device device, const std::function<void(int)>& body, bool replayed = true);

// Bytes a second. On a CPU: all threads together reading a buffer larger than any cache. On a card: a copy
// within its memory, bytes read and bytes written counted.
double measure_bandwidth(Device device);

// Floating-point operations a second of ssm::linear, weights of `stored`, activations of `compute`, best of
// several: 512 x 2048 x 2048 on a CPU, 8192 x 8192 x 8192 on a card.
double measure_gemm_rate(Device device, DType stored, DType compute);

}  // namespace ssm::app
