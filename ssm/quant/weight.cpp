#include "ssm/quant/weight.h"

namespace ssm {

bool defined(const Weight& weight) { return std::get<Tensor>(weight).defined(); }
const Shape& shape_of(const Weight& weight) { return std::get<Tensor>(weight).shape(); }
size_t bytes_of(const Weight& weight) { return std::get<Tensor>(weight).bytes(); }
Device device_of(const Weight& weight) { return std::get<Tensor>(weight).device(); }
std::string_view type_name(const Weight& weight) { return name_of(std::get<Tensor>(weight).dtype()); }

}  // namespace ssm
