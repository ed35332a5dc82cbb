#include "ssm/io/original_writer.h"

#include <cmath>

#include "ssm/core/atomic_file.h"

namespace ssm::io {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr int64_t kPadMultiple = 8;

std::string original_name(const std::string& name) {
  return name == "backbone.embeddings.weight" ? "backbone.embedding.weight" : name;
}

// The arguments of mamba_ssm's Mamba or Mamba2; what has its default there is left out where old versions do
// not know the field.
ordered_json module_arguments(const json& config, const std::string& file) {
  const bool is_mamba2 = config.value("ssm_layer", "") == "Mamba2" || config.at("model_type") == "mamba2";
  ordered_json out;
  if (is_mamba2) out["layer"] = "Mamba2";
  out["d_state"] = config.at("state_size");
  out["d_conv"] = config.at("conv_kernel");
  out["expand"] = config.at("expand");
  const int64_t hidden = config.at("hidden_size"), inner = config.at("intermediate_size");
  const auto expands_to = [&](double expand) {
    return static_cast<int64_t>(expand * static_cast<double>(hidden));
  };
  if (expands_to(config.at("expand").get<double>()) != inner) {
    double expand = static_cast<double>(inner) / static_cast<double>(hidden);
    if (expands_to(expand) != inner) expand = std::nextafter(expand, HUGE_VAL);
    out["expand"] = expand;
  }
  out["bias"] = config.at("use_bias");
  out["conv_bias"] = config.at("use_conv_bias");
  if (!is_mamba2) {
    out["dt_rank"] = config.at("time_step_rank");
    return out;
  }
  out["headdim"] = config.at("head_dim");
  out["ngroups"] = config.at("n_groups");
  out["chunk_size"] = config.at("chunk_size");
  if (config.at("D_has_hdim").get<bool>()) out["D_has_hdim"] = true;
  const json& limit = config.at("time_step_limit");
  if (limit.at(0) == 0.0 && std::isinf(limit.at(1).get<double>())) return out;
  SSM_CHECK(std::isfinite(limit.at(1).get<double>()),
            "{}: time_step_limit has no upper end, which JSON cannot say", file);
  out["dt_limit"] = limit;
  return out;
}

}  // namespace

std::string original_config(const json& config, const std::string& file) {
  SSM_CHECK(config.at("model_type") != "falcon_mamba", "{}: mamba_ssm has no FalconMamba", file);
  SSM_CHECK(config.at("model_type") != "gpt_neox", "{}: mamba_ssm has no GPT-NeoX", file);
  SSM_CHECK(config.at("layer_norm_epsilon") == 1e-5, "{}: layer_norm_epsilon is {}, and mamba_ssm's is 1e-5",
            file, config.at("layer_norm_epsilon").get<double>());
  const int64_t vocab = config.at("vocab_size");
  ordered_json out{{"d_model", config.at("hidden_size")},
                   {"d_intermediate", config.value("d_intermediate", int64_t{0})},
                   {"n_layer", config.at("num_hidden_layers")},
                   {"vocab_size", vocab},
                   {"ssm_cfg", module_arguments(config, file)},
                   {"attn_layer_idx", config.value("attn_layer_idx", json::array())},
                   {"attn_cfg", config.value("attn_cfg", json::object())},
                   {"rms_norm", true},
                   {"residual_in_fp32", config.at("residual_in_fp32")},
                   {"fused_add_norm", true},
                   {"pad_vocab_size_multiple", vocab % kPadMultiple == 0 ? kPadMultiple : 1},
                   {"tie_embeddings", config.at("tie_word_embeddings")}};
  return out.dump(2) + "\n";
}

void write_original(const std::filesystem::path& folder, const json& config,
                    std::span<const LazyTensor> tensors) {
  const std::string text = original_config(config, printable((folder / "config.json").string()));
  std::vector<LazyTensor> renamed(tensors.begin(), tensors.end());
  for (LazyTensor& t : renamed) t.name = original_name(t.name);
  std::vector<TensorAlias> aliases;
  if (config.at("tie_word_embeddings").get<bool>())
    aliases.push_back({"lm_head.weight", "backbone.embedding.weight"});
  write_torch(folder / "pytorch_model.bin", renamed, aliases);
  write_whole(folder / "config.json", text);
}

}  // namespace ssm::io
