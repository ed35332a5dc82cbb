#include "ssm/io/checkpoint_writer.h"

#include <array>
#include <cmath>
#include <system_error>

#include "ssm/core/atomic_file.h"
#include "ssm/io/mapped_file.h"

namespace ssm::io {
namespace {

constexpr std::string_view kInfinity =
    "\x01infinity";  // JSON has no such number; no text of a config is this
constexpr std::string_view kInfinityWritten = "\"\\u0001infinity\"";
constexpr std::array kTokenizerSettings{"tokenizer_config.json", "special_tokens_map.json",
                                        "generation_config.json", "chat_template.jinja",
                                        "chat_template.json"};

std::string class_of(const std::string& model_type) {
  if (model_type == "mamba2") return "Mamba2ForCausalLM";
  if (model_type == "gpt_neox") return "GPTNeoXForCausalLM";
  if (model_type == "mamba_hybrid") return "MambaHybridForCausalLM";
  return model_type == "falcon_mamba" ? "FalconMambaForCausalLM" : "MambaForCausalLM";
}

std::string torch_name_of(DType dtype) {
  return dtype == DType::bf16 ? "bfloat16" : dtype == DType::f16 ? "float16" : "float32";
}

void write_files(const std::filesystem::path& folder, const std::string& config,
                 std::span<const LazyTensor> tensors) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  SSM_CHECK(!error, "{}: cannot create: {}", printable(folder.string()), error.message());
  write_safetensors(folder / "model.safetensors", tensors, {{"format", "pt"}});
  write_whole(folder / "config.json", config);
}

}  // namespace

std::string transformers_config(const nlohmann::json& config, DType stored, const std::string& file,
                                const PackedEntries& packed) {
  nlohmann::ordered_json out;
  const std::string model_type = config.at("model_type");
  out["architectures"] = {class_of(model_type)};
  for (const auto& [key, value] : config.items()) out[key] = value;
  out["torch_dtype"] = torch_name_of(stored);
  out["use_cache"] = true;
  if (!packed.empty()) out["quantization_config"] = quantization_config(packed);
  if (model_type == "mamba2") {
    SSM_CHECK(!config.at("D_has_hdim").get<bool>(),
              "{}: D_has_hdim is true, and Transformers' Mamba-2 has one D a head", file);
    out.erase("D_has_hdim");
  }
  if (out.contains("time_step_limit")) {
    for (nlohmann::ordered_json& limit : out["time_step_limit"]) {
      if (std::isinf(limit.get<double>())) limit = kInfinity;
    }
  }
  std::string text = out.dump(2);
  for (size_t at = 0; (at = text.find(kInfinityWritten, at)) != std::string::npos;) {
    text.replace(at, kInfinityWritten.size(), "Infinity");
  }
  return text + "\n";
}

void write_checkpoint(const std::filesystem::path& folder, const nlohmann::json& config, DType stored,
                      std::span<const LazyTensor> tensors) {
  write_files(folder, transformers_config(config, stored, (folder / "config.json").string()), tensors);
}

void write_checkpoint(const std::filesystem::path& folder, const nlohmann::json& config,
                      std::span<const LazyWeight> weights) {
  PackedEntries packed;
  std::vector<LazyTensor> tensors;
  DType stored = DType::f32;  // of what a layer begins with, where it is dense
  for (const LazyWeight& weight : weights) {
    if (const DType* dtype = std::get_if<DType>(&weight.type)) {
      if (weight.name.ends_with("in_proj.weight") || weight.name.ends_with("query_key_value.weight"))
        stored = *dtype;
      tensors.push_back({weight.name, *dtype, weight.shape,
                         [&weight] { return dense(weight.make(), "a tensor announced as dense"); }});
      continue;
    }
    const QuantFormat format = std::get<QuantFormat>(weight.type);
    packed[weight.name] = {format, weight.shape};
    tensors.push_back(
        {weight.name, DType::u8, {weight.shape[0], row_bytes(format, weight.shape[1])}, [&weight] {
           return std::get<QuantizedTensor>(weight.make()).bytes;
         }});
  }
  const std::string text = transformers_config(config, stored, (folder / "config.json").string(), packed);
  write_files(folder, text, tensors);
}

void copy_tokenizer_settings(const std::filesystem::path& from, const std::filesystem::path& to) {
  for (const char* name : kTokenizerSettings) {
    std::error_code error;
    if (!std::filesystem::exists(from / name, error)) continue;
    const Bytes bytes = map_file(from / name);
    write_whole(to / name, bytes.text());
  }
}

}  // namespace ssm::io
