// params.json (or config.json) of mistral-inference's Mamba models, Codestral's: a Mamba-2 of mamba_ssm with
// MambaArgs' field names. Everything MambaArgs does not name has mamba_ssm's default; norm_before_gate, which
// some files carry, is read by nobody.
#include <limits>

#include "ssm/io/bytes.h"
#include "ssm/io/config_fields.h"

namespace ssm::io {

using nlohmann::json;

json normalise_mistral(const json& config, const std::string& file) {
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
  const int64_t inner = fields.expanded("dim", 2, original["d_model"]);
  constexpr int64_t kHeadDim = 64;
  if (inner % kHeadDim != 0)
    fields.refuse("dim", "is {}: {} inner channels are not heads of {}", inner / 2, inner, kHeadDim);
  const int64_t groups = fields.positive("n_groups", std::nullopt);
  check_mamba2_shape(fields, {inner / 2, inner, inner / kHeadDim, kHeadDim, groups}, "dim", "n_groups");
  original["ssm_cfg"] = {{"layer", "Mamba2"}, {"ngroups", groups}};
  json out = normalise_original(original, file);
  // Of the SentencePiece tokenizer beside it: <s> and </s>; it has no padding.
  out["bos_token_id"] = 1;
  out["eos_token_id"] = 2;
  out["pad_token_id"] = nullptr;
  return out;
}

}  // namespace ssm::io
