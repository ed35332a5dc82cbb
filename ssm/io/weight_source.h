// WeightSource: named tensors of an opened model, whatever file they lie in. The model asks for names and
// shapes and never learns which format answers.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ssm/quant/quantized_tensor.h"

namespace ssm::io {

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // A view of the mapped file in the file's own dtype and shape, or nothing. Cheap: no element is read.
  virtual std::optional<Tensor> find(std::string_view name) const = 0;
  // A packed matrix, likewise; find() gives nothing of those.
  virtual std::optional<QuantizedTensor> find_packed(std::string_view /*name*/) const { return {}; }
  virtual std::vector<std::string> names() const = 0;
  // "model.safetensors: tensor backbone.norm_f.weight": for error messages.
  virtual std::string describe(std::string_view name) const = 0;
};

}  // namespace ssm::io
