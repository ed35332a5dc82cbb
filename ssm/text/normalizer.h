// The normalizers of tokenizer.json: NFC, NFD, NFKC, NFKD, Prepend, Replace of a string, Sequence.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ssm/text/json_fields.h"

namespace ssm::text {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  // Bytes that are no UTF-8 come through as they are.
  virtual std::string apply(std::string_view text) const = 0;
  virtual bool unchanged(std::string_view) const { return false; }  // true: certainly; saves a copy
};
using Normalizers = std::vector<std::unique_ptr<Normalizer>>;

struct NormalizerParts {
  Normalizers parts;
  bool prepends_space = false;  // a Prepend puts a space (or its stand-in) before every stretch of text
};

// Throws Error naming the field of what it does not know.
NormalizerParts parse_normalizer(const nlohmann::json& json, const std::string& name);

}  // namespace ssm::text
