#include "ssm/io/adapter.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "ssm/core/atomic_file.h"
#include "ssm/io/config_fields.h"
#include "ssm/io/mapped_file.h"
#include "ssm/io/renamed.h"
#include "ssm/io/torch_zip.h"

namespace ssm::io {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::string_view kPrefix = "base_model.model.";
constexpr std::string_view kBase = ".base_layer.";
constexpr int64_t kMaxRank = 1 << 16;

// Options of PEFT that change what the adapter computes; only without effect are they accepted.
constexpr std::array kUnsupported{"use_dora",
                                  "use_qalora",
                                  "use_bdlora",
                                  "lora_bias",
                                  "fan_in_fan_out",
                                  "layer_replication",
                                  "target_parameters",
                                  "trainable_token_indices",
                                  "alora_invocation_tokens",
                                  "kasa_config",
                                  "velora_config",
                                  "arrow_config",
                                  "monteclora_config"};

bool has_effect(const json& value) {
  return !(value.is_null() || value == false || (value.is_structured() && value.empty()));
}

std::string unwrapped(std::string_view name) {
  if (name.starts_with(kPrefix)) name.remove_prefix(kPrefix.size());
  std::string result(name);
  if (const size_t at = result.find(kBase); at != std::string::npos) result.erase(at, kBase.size() - 1);
  return result;
}

std::vector<std::string> names_in(const ConfigFields& fields, const char* key) {
  std::vector<std::string> names;
  const json* value = fields.find(key);
  if (!value) return names;
  if (value->is_string()) return {value->get<std::string>()};
  if (!value->is_array()) fields.refuse(key, "is {}, not a list of names", shown(*value));
  for (const json& name : *value) {
    if (!name.is_string()) fields.refuse(key, "holds {}, not a name", shown(name));
    names.push_back(name);
  }
  return names;
}

double real(const ConfigFields& fields, const char* key, double fallback, double low, double high) {
  const json* value = fields.find(key);
  if (!value) return fallback;
  if (!value->is_number() || value->get<double>() < low || value->get<double>() > high) {
    fields.refuse(key, "is {}, expected a number from {} to {}", shown(*value), low, high);
  }
  return *value;
}

json pattern(const ConfigFields& fields, const char* key) {
  const json* value = fields.find(key);
  if (!value) return json::object();
  if (!value->is_object()) fields.refuse(key, "is {}, not an object", shown(*value));
  for (const auto& [name, number] : value->items()) {
    if (!number.is_number())
      fields.refuse(key, "has {} for {}, not a number", shown(number), printable(name));
    if (name.find_first_of("\\^$*+?()[]{}|") != std::string::npos) {
      fields.refuse(key, "has the regular expression {}; only names of modules are supported",
                    printable(name));
    }
  }
  return *value;
}

}  // namespace

AdapterConfig parse_adapter_config(const json& object, const std::string& file) {
  const ConfigFields fields(object, file);
  const std::string type = fields.text("peft_type", std::nullopt);
  if (type != "LORA") fields.refuse("peft_type", "is {}; only LORA is supported", printable(type));
  for (const char* key : kUnsupported) {
    if (const json* value = fields.find(key); value && has_effect(*value)) {
      fields.refuse(key, "is {}, which is not supported", shown(*value));
    }
  }
  AdapterConfig config;
  config.r = fields.positive("r", 8);
  if (config.r > kMaxRank) fields.refuse("r", "is {}, expected at most {}", config.r, kMaxRank);
  config.alpha = real(fields, "lora_alpha", 8, 0, 1e9);
  config.dropout = real(fields, "lora_dropout", 0, 0, 1);
  config.use_rslora = fields.flag("use_rslora", false);
  config.bias = fields.text("bias", "none");
  if (config.bias != "none" && config.bias != "all" && config.bias != "lora_only") {
    fields.refuse("bias", "is {}; expected none, all or lora_only", printable(config.bias));
  }
  config.target_modules = names_in(fields, "target_modules");
  config.modules_to_save = names_in(fields, "modules_to_save");
  config.alpha_pattern = pattern(fields, "alpha_pattern");
  config.base_model = fields.has("base_model_name_or_path") ? fields.text("base_model_name_or_path", "") : "";
  return config;
}

namespace {

json as_json(const AdapterConfig& config) {
  const auto or_null = [](auto value) { return value.empty() ? json(nullptr) : json(value); };
  return {{"alpha_pattern", config.alpha_pattern},
          {"auto_mapping", nullptr},
          {"base_model_name_or_path", or_null(config.base_model)},
          {"bias", config.bias},
          {"fan_in_fan_out", false},
          {"inference_mode", true},
          {"init_lora_weights", true},
          {"layers_pattern", nullptr},
          {"layers_to_transform", nullptr},
          {"lora_alpha", std::floor(config.alpha) == config.alpha ? json(static_cast<int64_t>(config.alpha))
                                                                  : json(config.alpha)},
          {"lora_dropout", config.dropout},
          {"modules_to_save", or_null(config.modules_to_save)},
          {"peft_type", "LORA"},
          {"r", config.r},
          {"rank_pattern", json::object()},
          {"revision", nullptr},
          {"target_modules", config.target_modules},
          {"task_type", "CAUSAL_LM"},
          {"use_dora", false},
          {"use_rslora", config.use_rslora}};
}

}  // namespace

bool AdapterConfig::targets(std::string_view module) const {
  return std::any_of(target_modules.begin(), target_modules.end(),
                     [&](const std::string& name) { return module == name || module.ends_with("." + name); });
}

double AdapterConfig::scale_of(std::string_view module, int64_t rank) const {
  double a = alpha;
  for (const auto& [name, value] : alpha_pattern.items()) {
    if (module == name || module.ends_with("." + name)) a = value;
  }
  const auto r_of_module = static_cast<double>(rank);
  return a / (use_rslora ? std::sqrt(r_of_module) : r_of_module);
}

Adapter open_adapter(const fs::path& folder) {
  const fs::path file = folder / "adapter_config.json";
  const Bytes text = map_file(file);
  Adapter adapter{.folder = folder,
                  .config = parse_adapter_config(parse_json(text.text(), text.name), text.name),
                  .weights = {}};
  std::error_code ignored;
  const fs::path safe = folder / "adapter_model.safetensors", torch = folder / "adapter_model.bin";
  std::unique_ptr<WeightSource> source;
  if (fs::exists(safe, ignored) || !fs::exists(torch, ignored)) {
    source = SafetensorsFile::open(safe);
  } else {
    source = TorchFile::open(torch);
  }
  adapter.weights = std::make_unique<RenamedSource>(std::move(source), unwrapped);
  return adapter;
}

void write_adapter(const fs::path& folder, const AdapterConfig& config,
                   std::span<const NamedTensor> tensors) {
  std::error_code error;
  fs::create_directories(folder, error);
  SSM_CHECK(!error, "{}: cannot create: {}", printable(folder.string()), error.message());
  std::vector<NamedTensor> wrapped;
  for (const NamedTensor& t : tensors) {
    // The own bias of a module that has a LoRA belongs to what PEFT calls its base layer.
    const size_t dot = t.name.rfind('.');
    const bool of_base = t.name.ends_with(".bias") && config.targets(t.name.substr(0, dot));
    wrapped.push_back(
        {std::string(kPrefix) + (of_base ? t.name.substr(0, dot) + ".base_layer.bias" : t.name), t.tensor});
  }
  write_safetensors(folder / "adapter_model.safetensors", wrapped, {{"format", "pt"}});
  write_whole(folder / "adapter_config.json", as_json(config).dump(2) + "\n");
}

}  // namespace ssm::io
