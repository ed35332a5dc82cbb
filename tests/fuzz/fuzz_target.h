// What every fuzz target shares: any input either works or throws ssm::Error. Another exception, a crash, a
// sanitizer's report, a hang or a runaway allocation is a finding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

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

// A safetensors file: a header, and zeros as its data.
inline std::vector<std::byte> file_with_header(std::string_view header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::vector<std::byte> file(sizeof length + header.size() + data_bytes);
  std::memcpy(file.data(), &length, sizeof length);
  std::memcpy(file.data() + sizeof length, header.data(), header.size());
  return file;
}
