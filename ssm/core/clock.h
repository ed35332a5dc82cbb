// The time of day, as files and answers carry it.
#pragma once

#include <chrono>
#include <cstdint>

namespace ssm {

inline double unix_time() {  // seconds since 1970 began
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}
inline int64_t unix_seconds() { return static_cast<int64_t>(unix_time()); }

}  // namespace ssm
