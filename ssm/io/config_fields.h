// Typed access to the fields of a configuration: a missing field takes its default, a wrong one throws Error
// naming the file and the field. Used by the three layouts' readers only.
#pragma once

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "ssm/core/error.h"
#include "ssm/io/config.h"
#include "ssm/io/json.h"

namespace ssm::io {

class ConfigFields {
 public:
  // `prefix` stands before a field's name in messages ("ssm_cfg.").
  ConfigFields(const nlohmann::json& object, std::string file, std::string prefix = "");

  bool has(const char* key) const { return find(key) != nullptr; }  // present and not null
  const nlohmann::json* find(const char* key) const;                // nothing when missing or null
  // Present at all, null included; null is an error for the typed fields below.
  int64_t positive(const char* key, std::optional<int64_t> fallback) const;  // 1 .. 2^31 - 1
  int64_t natural(const char* key, int64_t fallback) const;                  // 0 .. 2^31 - 1
  double positive_real(const char* key, double fallback) const;
  bool flag(const char* key, std::optional<bool> fallback) const;
  std::string text(const char* key, std::optional<std::string> fallback) const;
  nlohmann::json limits(const char* key) const;                              // [low, high], default [0, inf]
  nlohmann::json token_id(const char* key, nlohmann::json fallback) const;   // number or null
  nlohmann::json token_ids(const char* key, nlohmann::json fallback) const;  // number, list or null
  // int(expand * width), as Python computes E; refuses what is not a sensible size.
  int64_t expanded(const char* key, double expand, int64_t width) const;

  template <class... Args>
  [[noreturn]] void refuse(std::string_view key, fmt::format_string<Args...> format, Args&&... args) const {
    fail("{}: {}{} {}", file_, prefix_, key, fmt::format(format, std::forward<Args>(args)...));
  }
  const std::string& file() const { return file_; }
  const nlohmann::json& object() const { return object_; }

 private:
  const nlohmann::json* present(const char* key, bool required) const;
  nlohmann::json one_token_id(const char* key, const nlohmann::json& value) const;

  const nlohmann::json& object_;
  std::string file_;
  std::string prefix_;
};

// What the three layouts have in common once their names are translated.
struct Mamba2Shape {
  int64_t hidden, inner, heads, head_dim, groups;
};
void check_mamba2_shape(const ConfigFields& fields, const Mamba2Shape& shape, const char* heads_key,
                        const char* groups_key);

// GPT-NeoX, whole.
nlohmann::json normalise_gpt_neox(const ConfigFields& fields);
// Whether mamba_ssm's settings ask for attention in some layers, or for an MLP in each; and what they ask
// for, onto a Mamba's.
bool is_hybrid(const ConfigFields& fields);
void read_hybrid(const ConfigFields& fields, bool is_mamba2, nlohmann::json& out);

nlohmann::json normalise_transformers(const nlohmann::json& config, const std::string& file);
nlohmann::json normalise_original(const nlohmann::json& config, const std::string& file);
nlohmann::json normalise_mistral(const nlohmann::json& config, const std::string& file,
                                 const MistralSizes& sizes);

}  // namespace ssm::io
