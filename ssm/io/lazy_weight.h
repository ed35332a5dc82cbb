// A parameter made when its turn to be written comes, dense or packed, so that a conversion holds one at a
// time.
#pragma once

#include <functional>
#include <string>
#include <variant>

#include "ssm/quant/weight.h"

namespace ssm::io {

struct LazyWeight {
  std::string name;
  Shape shape;
  std::variant<DType, QuantFormat> type;  // what make() gives
  std::function<Weight()> make;
};

}  // namespace ssm::io
