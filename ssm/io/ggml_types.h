// The types of tensors in GGUF files, by their number there: those this library computes with, and the names
// of the others, to refuse them by.
#pragma once

#include <optional>
#include <string_view>

#include "ssm/core/dtype.h"
#include "ssm/quant/format.h"

namespace ssm::io {

struct GgmlType {
  uint32_t id;
  std::string_view name;                 // as llama.cpp prints it: "F16", "Q4_K"
  std::optional<DType> dense = {};       // of a tensor that find() gives
  std::optional<QuantType> packed = {};  // of a matrix that find_packed() gives; neither: not supported

  QuantFormat format() const;  // of a packed one
};

// Nothing: ggml has (or had) no such type.
const GgmlType* ggml_type(uint32_t id);
const GgmlType* ggml_type(DType dtype);
const GgmlType* ggml_type(const QuantFormat& format);  // nothing of the group-wise integers

}  // namespace ssm::io
