// SSM_DISPATCH(device, f(args)): calls the backend's f, ssm::cpu::f or ssm::cuda::f. The only place that
// chooses by device; a build without CUDA has no second branch, and says so.
#pragma once

#include "ssm/core/device.h"
#include "ssm/core/error.h"

#ifdef SSM_CUDA
#define SSM_DISPATCH(device, ...) \
  ((device).type == ::ssm::DeviceType::cuda ? cuda::__VA_ARGS__ : cpu::__VA_ARGS__)
#else
#define SSM_DISPATCH(device, ...)          \
  ((device).type == ::ssm::DeviceType::cpu \
       ? cpu::__VA_ARGS__                  \
       : (::ssm::fail("{}", ::ssm::why_unavailable(device)), cpu::__VA_ARGS__))
#endif
