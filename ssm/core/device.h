// Where a tensor lives, and what a device can do about bytes. Only ops dispatch on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace ssm {

enum class DeviceType : uint8_t { cpu, cuda };

struct Device {
  DeviceType type = DeviceType::cpu;
  int8_t index = 0;
  bool operator==(const Device&) const = default;
  bool is_cuda() const { return type == DeviceType::cuda; }
};

inline constexpr Device kCpu{};
inline constexpr Device kCuda{DeviceType::cuda, 0};

std::string_view name_of(Device device);  // "cpu", "cuda"

// Empty when `device` works here; else why not, in one line: this build has no CUDA support, no card, a
// driver too old, a card too old or taken.
std::string why_unavailable(Device device);
// The CPU's name is empty; a card's is its model, "NVIDIA H100 80GB HBM3".
std::string description_of(Device device);

// Copies and fills follow what was enqueued on the device's stream before; a copy to the host waits for its
// end.
void copy_bytes(void* to, Device to_device, const void* from, Device from_device, size_t bytes);
void zero_bytes(void* to, Device device, size_t bytes);
void zero_rows(void* to, Device device, int64_t rows, size_t stride, size_t bytes);  // of each row
void synchronize(Device device);  // waits for all that was enqueued

// Bytes of a card's memory; `peak` is the most that this process's tensors held at a time.
struct DeviceMemory {
  size_t free = 0, total = 0, peak = 0;
};
DeviceMemory memory_of(Device device);

}  // namespace ssm
