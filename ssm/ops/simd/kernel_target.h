// Which of the compiled instruction sets the CPU kernels use on this machine.
#pragma once

#include <string_view>

namespace ssm {

std::string_view kernel_target();  // Highway's name: "AVX3_ZEN4", "AVX2", "NEON", ...

}  // namespace ssm
