// What `ssm quantize` did to a model, as a table and as JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "ssm/load/quantize_model.h"
#include "ssm/runtime/divergence.h"

namespace ssm::app {

struct QuantizeReport {
  std::string source, target, type;
  bool calibrated = false;
  std::vector<QuantizedEntry> tensors;
  std::optional<Divergence> text;  // on a text, against the original

  nlohmann::ordered_json json() const;
  std::string table() const;
};

}  // namespace ssm::app
