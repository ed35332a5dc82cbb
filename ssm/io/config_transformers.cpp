// config.json of Transformers (GPT-NeoX's: config_attention.cpp). Defaults are those of MambaConfig,
// FalconMambaConfig and Mamba2Config; fields that only matter for initialisation (initializer_range,
// time_step_min, ...) or that Transformers ignores (rms_norm, norm_before_gate, mamba2's intermediate_size
// and time_step_rank) are not read.
#include <algorithm>
#include <array>

#include "ssm/io/bytes.h"
#include "ssm/io/config_fields.h"
#include "ssm/io/packed_folder.h"

namespace ssm::io {
namespace {

using nlohmann::json;

struct Family {
  std::string_view model_type;
  std::array<std::string_view, 2> architectures;
};
constexpr std::array<Family, 5> kFamilies{{
    {"mamba", {"MambaForCausalLM", "MambaModel"}},
    {"mamba2", {"Mamba2ForCausalLM", "Mamba2Model"}},
    {"falcon_mamba", {"FalconMambaForCausalLM", "FalconMambaModel"}},
    {"gpt_neox", {"GPTNeoXForCausalLM", "GPTNeoXForCausalLM"}},
    {"mamba_hybrid",
     {"MambaHybridForCausalLM", "MambaHybridModel"}},  // of this program: Transformers has none
}};

std::string family_by_architecture(const ConfigFields& fields) {
  const json* list = fields.find("architectures");
  if (!list) fields.refuse("model_type", "is missing, and so is architectures");
  if (!list->is_array() || list->empty() || !list->front().is_string()) {
    fields.refuse("architectures", "is {}, not a list of class names", shown(*list));
  }
  const auto& name = list->front().get_ref<const std::string&>();
  for (const Family& family : kFamilies) {
    const auto& known = family.architectures;
    if (std::find(known.begin(), known.end(), name) != known.end()) return std::string(family.model_type);
  }
  fields.refuse("architectures",
                "is {}; supported are MambaForCausalLM, Mamba2ForCausalLM, FalconMambaForCausalLM, "
                "GPTNeoXForCausalLM",
                printable(name));
}

std::string family_of(const ConfigFields& fields) {
  if (!fields.has("model_type")) return family_by_architecture(fields);
  const std::string type = fields.text("model_type", std::nullopt);
  for (const Family& family : kFamilies) {
    if (family.model_type == type) return type;
  }
  fields.refuse("model_type", "is {}; supported are mamba, mamba2, falcon_mamba, gpt_neox", printable(type));
}

// Mamba-1 and FalconMamba: intermediate_size, where present, overrides expand (16 in FalconMamba-7B's file).
void read_mamba1(const ConfigFields& fields, json& out) {
  const int64_t hidden = out["hidden_size"];
  const double expand = fields.positive_real("expand", 2);
  out["intermediate_size"] = fields.object().contains("intermediate_size")
                                 ? fields.positive("intermediate_size", std::nullopt)
                                 : fields.expanded("expand", expand, hidden);
  const json* rank = fields.find("time_step_rank");
  out["time_step_rank"] =
      !rank || *rank == "auto" ? (hidden + 15) / 16 : fields.positive("time_step_rank", {});
  if (out["model_type"] == "falcon_mamba") out["mixer_rms_eps"] = fields.positive_real("mixer_rms_eps", 1e-6);
}

void read_mamba2(const ConfigFields& fields, json& out) {
  const int64_t hidden = out["hidden_size"];
  const int64_t inner = fields.expanded("expand", fields.positive_real("expand", 2), hidden);
  const int64_t heads = fields.positive("num_heads", 128);
  const int64_t head_dim = fields.positive("head_dim", 64);
  const int64_t groups = fields.positive("n_groups", 8);
  check_mamba2_shape(fields, {hidden, inner, heads, head_dim, groups}, "num_heads", "n_groups");
  out["intermediate_size"] = inner;
  out["num_heads"] = heads;
  out["head_dim"] = head_dim;
  out["n_groups"] = groups;
  out["chunk_size"] = fields.positive("chunk_size", 256);
  out["time_step_limit"] = fields.limits("time_step_limit");
  out["norm_before_gate"] = false;
  out["D_has_hdim"] = false;
}

}  // namespace

json normalise_transformers(const json& config, const std::string& file) {
  const ConfigFields fields(config, file);
  const std::string family = family_of(fields);
  packed_entries(config, file);  // refuses other programs
  if (family == "gpt_neox") return normalise_gpt_neox(fields);
  const bool hybrid = family == "mamba_hybrid";
  const std::string layer = hybrid ? fields.text("ssm_layer", std::nullopt) : "";
  if (hybrid && layer != "Mamba1" && layer != "Mamba2")
    fields.refuse("ssm_layer", "is {}; supported are Mamba1 and Mamba2", printable(layer));
  const bool is_mamba2 = family == "mamba2" || layer == "Mamba2";
  const std::string act = fields.text("hidden_act", "silu");
  if (act != "silu" && act != "swish")
    fields.refuse("hidden_act", "is {}; only silu is supported", printable(act));
  json out;
  out["model_type"] = family;
  out["vocab_size"] = fields.positive("vocab_size", is_mamba2 ? 32768 : 50280);
  out["hidden_size"] = fields.positive("hidden_size", is_mamba2 ? 4096 : 768);
  out["num_hidden_layers"] = fields.positive("num_hidden_layers", is_mamba2 ? 64 : 32);
  out["state_size"] = fields.positive("state_size", is_mamba2 ? 128 : 16);
  const json* expand = fields.find("expand");
  out["expand"] = expand ? *expand : json(2);
  out["conv_kernel"] = fields.positive("conv_kernel", 4);
  out["use_bias"] = fields.flag("use_bias", false);
  out["use_conv_bias"] = fields.flag("use_conv_bias", true);
  out["hidden_act"] = "silu";
  out["layer_norm_epsilon"] = fields.positive_real("layer_norm_epsilon", 1e-5);
  out["residual_in_fp32"] = fields.flag("residual_in_fp32", true);
  out["rms_norm"] = true;
  out["tie_word_embeddings"] = fields.flag("tie_word_embeddings", !is_mamba2);
  out["bos_token_id"] = fields.token_id("bos_token_id", 0);
  out["eos_token_id"] = fields.token_ids("eos_token_id", is_mamba2 ? 2 : 0);
  out["pad_token_id"] = fields.token_id("pad_token_id", is_mamba2 ? 1 : 0);
  is_mamba2 ? read_mamba2(fields, out) : read_mamba1(fields, out);
  if (hybrid && is_mamba2) out["D_has_hdim"] = fields.flag("D_has_hdim", false);
  if (hybrid) read_hybrid(fields, is_mamba2, out);
  return out;
}

}  // namespace ssm::io
