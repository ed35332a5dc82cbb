#include "ssm/quant/format.h"

#include <array>

#include "ssm/core/error.h"

namespace ssm {
namespace {

struct Traits {
  std::string_view name;
  int64_t group, bytes;  // of a block; 0: chosen by the user
};

constexpr std::array kTraits{Traits{"q8_0", 32, 34},   Traits{"q4_0", 32, 18},   Traits{"q4_1", 32, 20},
                             Traits{"q5_0", 32, 22},   Traits{"q5_1", 32, 24},   Traits{"q2_k", 256, 84},
                             Traits{"q3_k", 256, 110}, Traits{"q4_k", 256, 144}, Traits{"q5_k", 256, 176},
                             Traits{"q6_k", 256, 210}, Traits{"int8", 0, 0},     Traits{"int4", 0, 0}};

const Traits& traits(QuantType type) { return kTraits[static_cast<size_t>(type)]; }

}  // namespace

std::string name_of(const QuantFormat& format) {
  const Traits& t = traits(format.type);
  return t.group != 0 ? std::string(t.name) : fmt::format("{} group {}", t.name, format.group);
}

std::optional<QuantFormat> quant_format(std::string_view type, int64_t group) {
  for (size_t i = 0; i < kTraits.size(); ++i) {
    const Traits& t = kTraits[i];
    if (t.name != type) continue;
    if (t.group == 0 && group != 32 && group != 64 && group != 128) return {};
    return QuantFormat{static_cast<QuantType>(i), t.group != 0 ? t.group : group};
  }
  return {};
}

bool fits(const QuantFormat& format, int64_t K) {
  return K > 0 && (traits(format.type).group == 0 || K % format.group == 0);
}

int64_t row_bytes(const QuantFormat& format, int64_t K) {
  SSM_CHECK(fits(format, K), "rows of {} weights cannot be stored as {}", K, name_of(format));
  const Traits& t = traits(format.type);
  if (t.group != 0) return K / t.group * t.bytes;
  const int64_t groups = (K + format.group - 1) / format.group;
  return format.type == QuantType::int8 ? groups * 2 + K : groups * 4 + K / 32 * 16 + (K % 32 + 1) / 2;
}

}  // namespace ssm
