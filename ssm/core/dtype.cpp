#include "ssm/core/dtype.h"

#include <array>

namespace ssm {
namespace {
struct Info {
  DType dtype;
  std::string_view name;
  size_t size;
};
constexpr std::array<Info, 8> kInfos{{{DType::f32, "f32", 4},
                                      {DType::bf16, "bf16", 2},
                                      {DType::f16, "f16", 2},
                                      {DType::f64, "f64", 8},
                                      {DType::u8, "u8", 1},
                                      {DType::i8, "i8", 1},
                                      {DType::i32, "i32", 4},
                                      {DType::i64, "i64", 8}}};
}  // namespace

size_t size_of(DType dtype) { return kInfos[static_cast<size_t>(dtype)].size; }
std::string_view name_of(DType dtype) { return kInfos[static_cast<size_t>(dtype)].name; }

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const Info& info : kInfos) {
    if (info.name == name) return info.dtype;
  }
  return std::nullopt;
}

float to_float(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1fu;
  const uint32_t mantissa = x.bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

template <>
Float16 from_float<Float16>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to infinity
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 places the 10 bits at the mantissa's end
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

}  // namespace ssm
