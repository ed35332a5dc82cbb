// Where a tensor lives. Only ops dispatch on it.
#pragma once

#include <cstdint>

namespace ssm {

enum class DeviceType : uint8_t { cpu, cuda };

struct Device {
  DeviceType type = DeviceType::cpu;
  int8_t index = 0;
  bool operator==(const Device&) const = default;
};

inline constexpr Device kCpu{};

}  // namespace ssm
