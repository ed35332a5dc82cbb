// A checkpoint in several files: model.safetensors.index.json or pytorch_model.bin.index.json, whose
// weight_map says which file of the same folder holds which tensor. Throws Error naming the index and the
// entry: a path instead of a plain file name, a shard or a tensor that is not there.
#pragma once

#include <filesystem>

#include "ssm/io/weight_source.h"

namespace ssm::io {

std::unique_ptr<WeightSource> open_sharded(const std::filesystem::path& index);

// A plain file name of the same folder: not empty, no slash, not "." or "..".
bool is_plain_file_name(std::string_view name);

}  // namespace ssm::io
