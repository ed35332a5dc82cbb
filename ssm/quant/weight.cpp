#include "ssm/quant/weight.h"

namespace ssm {
namespace {

template <class F, class G>
decltype(auto) match(const Weight& weight, F&& of_dense, G&& of_packed) {
  if (const Tensor* tensor = std::get_if<Tensor>(&weight)) return of_dense(*tensor);
  return of_packed(std::get<QuantizedTensor>(weight));
}

const Tensor& memory(const Weight& weight) {
  return match(
      weight, [](const Tensor& t) -> const Tensor& { return t; },
      [](const QuantizedTensor& q) -> const Tensor& { return q.bytes; });
}

}  // namespace

bool defined(const Weight& weight) { return memory(weight).defined(); }
size_t bytes_of(const Weight& weight) { return memory(weight).bytes(); }
Device device_of(const Weight& weight) { return memory(weight).device(); }

bool is_packed(const Weight& weight) { return std::holds_alternative<QuantizedTensor>(weight); }

const Shape& shape_of(const Weight& weight) {
  return match(
      weight, [](const Tensor& t) -> const Shape& { return t.shape(); },
      [](const QuantizedTensor& q) -> const Shape& { return q.shape; });
}

std::string type_name(const Weight& weight) {
  return match(
      weight, [](const Tensor& t) { return std::string(name_of(t.dtype())); },
      [](const QuantizedTensor& q) { return name_of(q.format); });
}

const Tensor& dense(const Weight& weight, std::string_view what) {
  const Tensor* tensor = std::get_if<Tensor>(&weight);
  SSM_CHECK(tensor != nullptr, "{} needs dense matrices: this model's are packed ({})", what,
            type_name(weight));
  return *tensor;
}

}  // namespace ssm
