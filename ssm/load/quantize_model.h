// A model's file to a smaller one: its matrices packed (load/quantization.h), the rest as stored.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "ssm/core/progress.h"
#include "ssm/load/quantization.h"

namespace ssm {

// What became of one tensor.
struct QuantizedEntry {
  std::string name;
  Shape shape;
  std::string stored, type;  // before and after: "bf16", "int4 group 64"
  size_t stored_bytes = 0, bytes = 0;
  double error = 0;  // of a packed one: the root of sum (w - w')^2 / sum w^2
};

// Writes `target`, which must not exist and appears whole or not at all: a GGUF file where its name ends in
// .gguf, else a folder in Transformers' layout (io/packed_folder.h). One matrix is held at a time. Throws
// Error naming file and tensor: one that cannot be packed or is packed already, a type that GGUF does not
// have.
std::vector<QuantizedEntry> quantize_model(const std::filesystem::path& source,
                                           const std::filesystem::path& target,
                                           const Quantization& quantization, const OnProgress& progress = {});

}  // namespace ssm
