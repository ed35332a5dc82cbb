// SSM_DISPATCH(device, f(args)): calls the backend's f, ssm::cpu::f or ssm::cuda::f. The only place that
// chooses by device; a build without CUDA has no second branch, and says so.
//
// SSM_CUDA_HAS(device, f(args)): whether device is a card and ssm::cuda::f says yes, for what only a card
// has. Such work itself stands behind `if constexpr (kHasCuda)`.
#pragma once

#include "ssm/core/device.h"
#include "ssm/core/error.h"

#ifdef SSM_CUDA
namespace ssm {
inline constexpr bool kHasCuda = true;
}
#define SSM_DISPATCH(device, ...) \
  ((device).type == ::ssm::DeviceType::cuda ? cuda::__VA_ARGS__ : cpu::__VA_ARGS__)
#else
namespace ssm {
inline constexpr bool kHasCuda = false;
}
#define SSM_DISPATCH(device, ...)          \
  ((device).type == ::ssm::DeviceType::cpu \
       ? cpu::__VA_ARGS__                  \
       : (::ssm::fail("{}", ::ssm::why_unavailable(device)), cpu::__VA_ARGS__))
#endif

#define SSM_CUDA_HAS(device, ...)                     \
  [&] {                                               \
    if constexpr (::ssm::kHasCuda)                    \
      return (device).is_cuda() && cuda::__VA_ARGS__; \
    else                                              \
      return false;                                   \
  }()
