// A model from one layout to another, tensor by tensor, as stored: dense ones keep their types and packed
// ones their bytes where the target can hold them. What a layout cannot say is refused by name.
#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "ssm/core/progress.h"
#include "ssm/io/checkpoint.h"
#include "ssm/io/lazy_weight.h"

namespace ssm {

enum class ModelFormat { transformers, original, gguf };

struct ConvertOptions {
  std::optional<DType> dtype = {};       // of the matrices, packed ones too; nothing: each as it is
  std::filesystem::path tokenizer = {};  // a file or folder that takes the place of the model's own
  OnProgress progress = {};
};

// `target` must not exist; it appears whole or not at all: a folder, or a file of GGUF. Throws Error naming
// the file and the field or tensor.
void convert_model(const std::filesystem::path& source, const std::filesystem::path& target,
                   ModelFormat format, const ConvertOptions& options = {});

// The parameters that the checkpoint's config asks for, under Transformers' names, each read when it is made;
// `checkpoint` must outlive them. Throws Error naming one that is missing or of another shape.
std::vector<io::LazyWeight> stored_weights(const io::Checkpoint& checkpoint, std::optional<DType> dtype = {});

// "mamba-130m-hf" of a folder, "model" of model.gguf.
std::string name_of_model(const std::filesystem::path& path);

}  // namespace ssm
