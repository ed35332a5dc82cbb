// load_model: a folder of any supported layout, as it was downloaded, to a model ready to run.
#pragma once

#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "ssm/models/causal_lm.h"
#include "ssm/text/tokenizer.h"

namespace ssm {

struct LoadOptions {
  // Type of the activations at matrix products. Nothing: the file's type where the CPU multiplies it
  // natively, otherwise f32. Weights always stay as stored.
  std::optional<DType> compute;
  std::filesystem::path tokenizer;  // a file or folder that replaces the model's own
};

struct LoadedModel {
  std::unique_ptr<CausalLm> model;
  std::unique_ptr<text::Tokenizer> tokenizer;  // null: the folder carries none
  nlohmann::json config;                       // full, in Transformers' key names
  std::string layout;                          // "transformers", "original", "mistral", "random"
  DType stored = DType::f32;                   // of the matrices, as in the file
  DType compute = DType::f32;
  int64_t parameters = 0;
  size_t weight_bytes = 0;
  std::vector<int32_t> eos;  // ids that end a text

  // Ids below this can be generated: the padding of the vocabulary cannot.
  int64_t usable_vocab() const;
  // The tokenizer, or an Error that says which file to put where.
  const text::Tokenizer& need_tokenizer() const;

  std::filesystem::path folder;
};

// Throws Error naming the file and the field or tensor.
LoadedModel load_model(const std::filesystem::path& folder, const LoadOptions& options = {});

}  // namespace ssm
