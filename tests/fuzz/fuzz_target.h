// What every fuzz target shares: any input either works or throws ssm::Error. Another exception, a crash, a
// sanitizer's report, a hang or a runaway allocation is a finding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "ssm/core/error.h"

template <class F>
void ignore_errors(F&& f) {
  try {
    f();
  } catch (const ssm::Error&) {
  }
}

inline std::span<const std::byte> bytes_of(const uint8_t* data, size_t size) {
  return std::as_bytes(std::span(data, size));
}
inline std::string_view text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}
