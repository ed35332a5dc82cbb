// Which draws drop an element: the same on every device.
#pragma once

#include <cstdint>

namespace ssm {

// A 32-bit draw below this drops.
inline uint32_t dropout_threshold(float p) {
  return static_cast<uint32_t>(static_cast<double>(p) * 4294967296.0);
}

}  // namespace ssm
