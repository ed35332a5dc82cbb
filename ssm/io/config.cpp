#include "ssm/io/config.h"

#include "ssm/io/config_fields.h"

namespace ssm::io {

using nlohmann::json;

std::string_view name_of(Layout layout) {
  switch (layout) {
    case Layout::transformers:
      return "transformers";
    case Layout::original:
      return "original";
    case Layout::mistral:
      return "mistral";
    case Layout::gguf:
      return "gguf";
  }
  return "?";
}

// Converted files keep d_model and n_layer beside Transformers' own fields (state-spaces/mamba-130m-hf), and
// Mistral's carry a model_type too: the field that only one layout has decides.
std::optional<Layout> layout_of_config(const json& config) {
  if (!config.is_object()) return std::nullopt;
  if (config.contains("dim") && !config.contains("hidden_size")) return Layout::mistral;
  const bool original = config.contains("d_model") || config.contains("n_layer");
  if (original && !config.contains("hidden_size")) return Layout::original;
  if (config.contains("model_type") || config.contains("architectures")) return Layout::transformers;
  return std::nullopt;
}

json normalise_config(const json& config, Layout layout, const std::string& file, const MistralSizes& sizes) {
  switch (layout) {
    case Layout::transformers:
      return normalise_transformers(config, file);
    case Layout::original:
      return normalise_original(config, file);
    case Layout::mistral:
      return normalise_mistral(config, file, sizes);
    case Layout::gguf:  // has no JSON
      break;
  }
  fail("{}: unknown layout", file);
}

json read_config(std::string_view text, const std::string& file) {
  const json config = parse_json(text, file, SpecialFloats::allow);
  const std::optional<Layout> layout = layout_of_config(config);
  SSM_CHECK(layout,
            "{}: has neither model_type (Transformers), d_model and n_layer (state-spaces) nor dim (Mistral)",
            file);
  return normalise_config(config, *layout, file);
}

}  // namespace ssm::io
