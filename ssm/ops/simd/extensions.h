// Instructions that no target of Highway 1.0 has, for which kernels have a second form beside Highway's.
// Files named *_x86.cpp hold plain intrinsics and are compiled for x86 alone; whoever calls into them does so
// under `if constexpr (HWY_ARCH_X86)`.
#pragma once

#include <hwy/detect_compiler_arch.h>

namespace ssm::cpu {

struct Extensions {
  bool vnni = false;  // AVX512_VNNI: linear with packed weights
  bool bf16 = false;  // AVX512_BF16: linear in bf16
};

#if HWY_ARCH_X86
Extensions extensions();  // what this CPU has, or of that what a test allows
void allow_extensions(Extensions allowed);
#else
constexpr Extensions extensions() { return {}; }
inline void allow_extensions(Extensions) {}
#endif

}  // namespace ssm::cpu
