// A parameter made when its turn to be written comes, dense or packed, so that a conversion holds one at a
// time.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "ssm/core/progress.h"
#include "ssm/quant/weight.h"

namespace ssm::io {

struct LazyWeight {
  std::string name;
  Shape shape;
  std::variant<DType, QuantFormat> type;  // what make() gives
  std::function<Weight()> make;
};

// Tells `progress` before each of `all`, LazyWeights or LazyTensors, is made how many numbers are.
template <class Lazy>
void report_making(std::vector<Lazy>& all, const OnProgress& progress) {
  if (!progress) return;
  int64_t total = 0;
  for (const Lazy& one : all) total += one.shape.numel();
  for (const auto done = std::make_shared<int64_t>(0); Lazy & one : all) {
    one.make = [make = std::move(one.make), numel = one.shape.numel(), done, total, progress] {
      progress(*done, total);
      *done += numel;
      return make();
    };
  }
}

}  // namespace ssm::io
