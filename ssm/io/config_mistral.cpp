// params.json (or config.json) of mistral-inference's Mamba models, Codestral's: a Mamba-2 of mamba_ssm with
// MambaArgs' field names. Everything MambaArgs does not name has mamba_ssm's default; norm_before_gate, which
// some files carry, is read by nobody.
#include <limits>

#include "ssm/io/bytes.h"
#include "ssm/io/config_fields.h"

namespace ssm::io {

using nlohmann::json;

MistralSizes sizes_from_tensors(const WeightSource& weights, int64_t groups) {
  MistralSizes sizes;
  const auto find = [&](const char* name) {
    return weights.find(std::string("backbone.layers.0.mixer.") + name);
  };
  const auto dt_bias = find("dt_bias"), norm = find("norm.weight"), conv = find("conv1d.weight");
  if (!dt_bias || !norm || !conv || dt_bias->rank() != 1 || norm->rank() != 1 || conv->rank() != 3)
    return sizes;
  const int64_t H = dt_bias->size(0), E = norm->size(0), C = conv->size(0);
  if (H < 1 || E < 1 || groups < 1 || E % H != 0 || C <= E || (C - E) % (2 * groups) != 0) return sizes;
  return {.inner = E, .head_dim = E / H, .state_size = (C - E) / (2 * groups), .conv_kernel = conv->size(2)};
}

json normalise_mistral(const json& config, const std::string& file, const MistralSizes& sizes) {
  const ConfigFields fields(config, file);
  const std::string type = fields.text("model_type", "mamba");
  if (type != "mamba")
    fields.refuse("model_type", "is {}; of Mistral's models only mamba is supported", printable(type));
  json original;
  original["d_model"] = fields.positive("dim", std::nullopt);
  original["n_layer"] = fields.positive("n_layers", std::nullopt);
  original["vocab_size"] = fields.positive("vocab_size", std::nullopt);
  original["pad_vocab_size_multiple"] = fields.positive("pad_vocab_size_multiple", 8);
  original["residual_in_fp32"] = fields.flag("residual_in_fp32", true);
  original["tie_embeddings"] = fields.flag("tie_embeddings", std::nullopt);
  if (!fields.flag("rms_norm", true)) fields.refuse("rms_norm", "is false: LayerNorm is not supported");
  const int64_t hidden = original["d_model"];
  const int64_t inner = sizes.inner.value_or(fields.expanded("dim", 2, hidden));
  if (inner % sizes.head_dim != 0)
    fields.refuse("dim", "is {}: {} inner channels are not heads of {}", hidden, inner, sizes.head_dim);
  const int64_t groups = fields.positive("n_groups", std::nullopt);
  check_mamba2_shape(fields, {hidden, inner, inner / sizes.head_dim, sizes.head_dim, groups}, "dim",
                     "n_groups");
  original["ssm_cfg"] = {{"layer", "Mamba2"},
                         {"ngroups", groups},
                         {"expand", static_cast<double>(inner) / static_cast<double>(hidden)},
                         {"headdim", sizes.head_dim},
                         {"d_state", sizes.state_size},
                         {"d_conv", sizes.conv_kernel}};
  json out = normalise_original(original, file);
  // Of the SentencePiece tokenizer beside it: <s> and </s>; it has no padding.
  out["bos_token_id"] = 1;
  out["eos_token_id"] = 2;
  out["pad_token_id"] = nullptr;
  return out;
}

}  // namespace ssm::io
