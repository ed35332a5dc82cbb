#include "ssm/load/quantization.h"

#include <algorithm>
#include <cmath>

#include "ssm/quant/quantize.h"

namespace ssm {
namespace {

QuantFormat of_role(const QuantFormat& format, std::string_view name) {
  const bool integers = format.type == QuantType::int4 || format.type == QuantType::int8;
  if (name.ends_with("x_proj.weight") || name.ends_with("dt_proj.weight"))
    return integers ? QuantFormat{QuantType::int8, format.group} : *quant_format("q8_0");
  if (name.find(".layers.") != name.npos) return format;
  switch (format.type) {
    case QuantType::q4_0:
      return *quant_format("q5_0");
    case QuantType::q4_1:
      return *quant_format("q5_1");
    case QuantType::q4_k:
      return *quant_format("q5_k");
    case QuantType::int4:
      return {QuantType::int8, format.group};
    default:
      return format;
  }
}

std::optional<QuantFormat> that_fits(const QuantFormat& format, int64_t K) {
  if (fits(format, K)) return format;
  if (K <= 0 || K % 32 != 0) return {};
  switch (format.type) {
    case QuantType::q4_k:
      return quant_format("q5_0");
    case QuantType::q5_k:
      return quant_format("q5_1");
    case QuantType::q6_k:
      return quant_format("q8_0");
    default:
      fail("{} is read, not written", name_of(format));
  }
}

}  // namespace

std::vector<std::string> quantization_types() {
  return {"q8_0", "q6_k", "q5_k", "q4_k", "q5_0", "q5_1", "q4_0", "q4_1", "int8", "int4"};
}

std::variant<DType, QuantFormat> planned_type(const Quantization& quantization, std::string_view name,
                                              const Shape& shape, DType stored) {
  for (const std::string& part : quantization.keep) {
    if (name.find(part) != name.npos) return stored;
  }
  const std::optional<QuantFormat> format = that_fits(of_role(quantization.format, name), shape[1]);
  if (format) return *format;
  return stored == DType::f32 ? DType::f16 : stored;
}

Weight quantized(const Tensor& matrix, const Quantization& quantization, const std::string& name,
                 const std::string& described) {
  const auto plan = planned_type(quantization, name, matrix.shape(), matrix.dtype());
  if (const DType* dtype = std::get_if<DType>(&plan)) return matrix.to(*dtype);
  const auto importance = quantization.importance.find(name);
  try {
    return quantize(
        matrix, std::get<QuantFormat>(plan),
        importance == quantization.importance.end() ? std::span<const float>() : importance->second);
  } catch (const Error& e) {
    fail("{}: {}", described, e.what());
  }
}

}  // namespace ssm
