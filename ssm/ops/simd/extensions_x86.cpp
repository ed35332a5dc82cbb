#include "ssm/ops/simd/extensions.h"

namespace ssm::cpu {
namespace {

Extensions of_this_cpu() {
  const bool avx512 = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  return {.vnni = avx512 && __builtin_cpu_supports("avx512vnni"),
          .bf16 = avx512 && __builtin_cpu_supports("avx512bf16")};
}

Extensions& used() {
  static Extensions extensions = of_this_cpu();
  return extensions;
}

}  // namespace

Extensions extensions() { return used(); }

void allow_extensions(Extensions allowed) {
  const Extensions has = of_this_cpu();
  used() = {.vnni = allowed.vnni && has.vnni, .bf16 = allowed.bf16 && has.bf16};
}

}  // namespace ssm::cpu
