// config.json of state-spaces/mamba: MambaConfig's fields, and in ssm_cfg the arguments of the Mamba or
// Mamba2 module. Defaults are those of mamba_ssm. What would change the function and is not supported is
// refused.
#include <algorithm>
#include <array>
#include <span>

#include "ssm/io/bytes.h"
#include "ssm/io/config_fields.h"

namespace ssm::io {
namespace {

using nlohmann::json;

constexpr std::array<std::string_view, 16> kMamba1Keys{
    "layer",  "d_state", "d_conv",   "expand",        "dt_rank",   "bias",   "conv_bias",     "dt_min",
    "dt_max", "dt_init", "dt_scale", "dt_init_floor", "layer_idx", "device", "use_fast_path", "dtype"};
constexpr std::array<std::string_view, 25> kMamba2Keys{
    "layer",      "d_state",          "d_conv",        "expand",    "headdim",
    "ngroups",    "chunk_size",       "d_ssm",         "rmsnorm",   "dt_limit",
    "D_has_hdim", "norm_before_gate", "bias",          "conv_bias", "A_init_range",
    "dt_min",     "dt_max",           "dt_init_floor", "conv_init", "use_mem_eff_path",
    "layer_idx",  "process_group",    "device",        "dtype",     "sequence_parallel"};

void check_keys(const json& ssm_cfg, bool is_mamba2, const ConfigFields& fields) {
  const std::span<const std::string_view> known = is_mamba2 ? std::span<const std::string_view>(kMamba2Keys)
                                                            : std::span<const std::string_view>(kMamba1Keys);
  for (const auto& [key, value] : ssm_cfg.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      fields.refuse(printable(key), "is not a known setting of {}", is_mamba2 ? "Mamba2" : "Mamba1");
    }
  }
}

int64_t padded(const ConfigFields& fields) {
  const int64_t size = fields.positive("vocab_size", 50277);
  const int64_t multiple = fields.positive("pad_vocab_size_multiple", 8);
  const int64_t result = (size + multiple - 1) / multiple * multiple;
  if (result > INT32_MAX) fields.refuse("pad_vocab_size_multiple", "is {}", multiple);
  return result;
}

void read_mamba1(const ConfigFields& ssm, json& out) {
  const int64_t hidden = out["hidden_size"];
  const json* rank = ssm.find("dt_rank");
  out["time_step_rank"] =
      !rank || *rank == "auto" ? (hidden + 15) / 16 : ssm.positive("dt_rank", std::nullopt);
}

void read_mamba2(const ConfigFields& ssm, json& out) {
  const int64_t hidden = out["hidden_size"];
  const int64_t inner = out["intermediate_size"];
  if (ssm.has("d_ssm") && ssm.positive("d_ssm", std::nullopt) != inner) {
    ssm.refuse("d_ssm", "is {} of {} inner channels: the MLP beside the SSM is not supported",
               shown(*ssm.find("d_ssm")), inner);
  }
  if (!ssm.flag("rmsnorm", true)) ssm.refuse("rmsnorm", "is false: only the gated norm is supported");
  if (ssm.flag("norm_before_gate", false)) {
    ssm.refuse("norm_before_gate", "is true: only the norm after the gate is supported");
  }
  const int64_t head_dim = ssm.positive("headdim", 64);
  if (inner % head_dim != 0) ssm.refuse("headdim", "is {}, which does not divide {}", head_dim, inner);
  const int64_t groups = ssm.positive("ngroups", 1);
  check_mamba2_shape(ssm, {hidden, inner, inner / head_dim, head_dim, groups}, "headdim", "ngroups");
  out["num_heads"] = inner / head_dim;
  out["head_dim"] = head_dim;
  out["n_groups"] = groups;
  out["chunk_size"] = ssm.positive("chunk_size", 256);
  out["time_step_limit"] = ssm.limits("dt_limit");
  out["norm_before_gate"] = false;
  out["D_has_hdim"] = ssm.flag("D_has_hdim", false);
}

}  // namespace

json normalise_original(const json& config, const std::string& file) {
  const ConfigFields fields(config, file);
  if (!fields.flag("rms_norm", true)) fields.refuse("rms_norm", "is false: LayerNorm is not supported");
  const json empty = json::object();
  const json* given = fields.find("ssm_cfg");
  const ConfigFields ssm(given ? *given : empty, file, "ssm_cfg.");
  const std::string layer = ssm.text("layer", "Mamba1");
  const bool is_mamba2 = layer == "Mamba2";
  if (!is_mamba2 && layer != "Mamba1") {
    ssm.refuse("layer", "is {}; supported are Mamba1 and Mamba2", printable(layer));
  }
  check_keys(ssm.object(), is_mamba2, ssm);
  json out;
  out["model_type"] = is_mamba2 ? "mamba2" : "mamba";
  out["vocab_size"] = padded(fields);
  out["hidden_size"] = fields.positive("d_model", std::nullopt);
  out["num_hidden_layers"] = fields.positive("n_layer", std::nullopt);
  out["state_size"] = ssm.positive("d_state", is_mamba2 ? 128 : 16);
  const json* expand = ssm.find("expand");
  out["expand"] = expand ? *expand : json(2);
  out["intermediate_size"] = ssm.expanded("expand", ssm.positive_real("expand", 2), out["hidden_size"]);
  out["conv_kernel"] = ssm.positive("d_conv", 4);
  out["use_bias"] = ssm.flag("bias", false);
  out["use_conv_bias"] = ssm.flag("conv_bias", true);
  out["hidden_act"] = "silu";
  out["layer_norm_epsilon"] = 1e-5;
  out["residual_in_fp32"] = fields.flag("residual_in_fp32", true);
  out["rms_norm"] = true;
  out["tie_word_embeddings"] = fields.flag("tie_embeddings", true);
  // These folders have no tokenizer: GPT-NeoX's, whose <|endoftext|> is 0.
  out["bos_token_id"] = fields.token_id("bos_token_id", 0);
  out["eos_token_id"] = fields.token_ids("eos_token_id", 0);
  out["pad_token_id"] = fields.token_id("pad_token_id", 0);
  is_mamba2 ? read_mamba2(ssm, out) : read_mamba1(ssm, out);
  if (is_hybrid(fields)) read_hybrid(fields, is_mamba2, out);
  return out;
}

}  // namespace ssm::io
