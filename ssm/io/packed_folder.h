// Packed matrices in a folder of Transformers' layout. config.json says which tensors of model.safetensors
// are packed, and how:
//
//   "quantization_config": {"quant_method": "ssm.cpp", "version": 1, "tensors": {
//       "backbone.embeddings.weight": {"type": "q5_0", "shape": [6144, 320]},
//       "backbone.layers.0.mixer.in_proj.weight": {"type": "int4", "group": 64, "shape": [1418, 320]}, ...}}
//
// Such a tensor is U8 [N, row_bytes] in the file, its rows as ssm/quant/format.h says. Throws Error naming
// the file, the tensor and the field.
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "ssm/io/weight_source.h"

namespace ssm::io {

struct PackedEntry {
  QuantFormat format;
  Shape shape;  // [N, K]
};
using PackedEntries = std::map<std::string, PackedEntry, std::less<>>;

// Of a whole config.json, `file` its name. Empty: it has no quantization_config. One of another program's is
// refused.
PackedEntries packed_entries(const nlohmann::json& config, const std::string& file);
nlohmann::ordered_json quantization_config(const PackedEntries& entries);

// `source`, where those tensors are packed matrices.
std::unique_ptr<WeightSource> with_packed(std::unique_ptr<WeightSource> source, PackedEntries entries);

}  // namespace ssm::io
