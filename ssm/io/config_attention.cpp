// What models with attention say of it: GPT-NeoX's config.json (defaults of GPTNeoXConfig), and the settings
// of mamba_ssm's hybrids (defaults of its MHA and GatedMLP).
#include <algorithm>
#include <array>
#include <set>

#include "ssm/io/bytes.h"
#include "ssm/io/config_fields.h"

namespace ssm::io {

using nlohmann::json;

namespace {

constexpr int64_t kMlpMultiple = 128;  // GatedMLP rounds up to it

constexpr std::array<std::string_view, 12> kAttentionKeys{
    "causal",        "d_conv",        "head_dim",       "num_heads",       "num_heads_kv",
    "out_proj_bias", "qkv_proj_bias", "rotary_emb_dim", "rotary_emb_base", "rotary_emb_interleaved",
    "mlp_dim",       "softmax_scale"};

void refuse_scaled_positions(const ConfigFields& fields) {
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const json* given = fields.find(key);
    if (!given) continue;
    const ConfigFields rope(*given, fields.file(), std::string(key) + ".");
    const std::string type = rope.text(rope.has("rope_type") ? "rope_type" : "type", "default");
    if (type != "default") rope.refuse("rope_type", "is {}; only default is supported", printable(type));
  }
}

// rope_parameters of Transformers 5, or the names before it.
double rotary(const ConfigFields& fields, const char* in_parameters, const char* key, double fallback) {
  const json* given = fields.find("rope_parameters");
  if (!given) return fields.positive_real(key, fallback);
  const ConfigFields rope(*given, fields.file(), "rope_parameters.");
  return rope.positive_real(in_parameters, fields.positive_real(key, fallback));
}

json attention_layers(const ConfigFields& fields, int64_t layers) {
  const json* list = fields.find("attn_layer_idx");
  if (!list) return json::array();
  std::set<int64_t> seen;
  bool fits = list->is_array();
  for (const json& item : fits ? *list : json::array()) {
    fits = fits && item.is_number_unsigned() && item.get<uint64_t>() < static_cast<uint64_t>(layers) &&
           seen.insert(item.get<int64_t>()).second;
  }
  if (!fits)
    fields.refuse("attn_layer_idx", "is {}, not a list of some of the {} layers", shown(*list), layers);
  return std::vector<int64_t>(seen.begin(), seen.end());
}

json attention_settings(const ConfigFields& attn, int64_t hidden) {
  for (const auto& [key, value] : attn.object().items()) {
    if (std::find(kAttentionKeys.begin(), kAttentionKeys.end(), key) == kAttentionKeys.end())
      attn.refuse(printable(key), "is not a known setting of MHA");
  }
  if (!attn.flag("causal", false)) attn.refuse("causal", "is false: only attention to the past is supported");
  if (attn.flag("rotary_emb_interleaved", false))
    attn.refuse("rotary_emb_interleaved", "is true: only halves are supported");
  if (attn.natural("mlp_dim", 0) != 0)
    attn.refuse("mlp_dim", "is {}: only 0 is supported", shown(*attn.find("mlp_dim")));
  if (attn.has("softmax_scale"))
    attn.refuse("softmax_scale", "is {}: only its default is supported", shown(*attn.find("softmax_scale")));
  const int64_t heads = attn.positive("num_heads", std::nullopt);
  const int64_t kv_heads = attn.has("num_heads_kv") ? attn.positive("num_heads_kv", std::nullopt) : heads;
  if (heads % kv_heads != 0)
    attn.refuse("num_heads_kv", "is {}, which does not divide the {} heads", kv_heads, heads);
  if (!attn.has("head_dim") && hidden % heads != 0)
    attn.refuse("num_heads", "is {}, which does not divide {}", heads, hidden);
  const int64_t head_dim = attn.has("head_dim") ? attn.positive("head_dim", std::nullopt) : hidden / heads;
  const int64_t rotary_dim = attn.natural("rotary_emb_dim", 0);
  if (rotary_dim % 2 != 0 || rotary_dim > head_dim)
    attn.refuse("rotary_emb_dim", "is {}, not an even number up to {}", rotary_dim, head_dim);
  if ((heads + 2 * kv_heads) > INT32_MAX / head_dim) attn.refuse("head_dim", "is {}", head_dim);
  return {{"causal", true},
          {"d_conv", attn.natural("d_conv", 0)},
          {"head_dim", head_dim},
          {"num_heads", heads},
          {"num_heads_kv", kv_heads},
          {"out_proj_bias", attn.flag("out_proj_bias", true)},
          {"qkv_proj_bias", attn.flag("qkv_proj_bias", true)},
          {"rotary_emb_dim", rotary_dim},
          {"rotary_emb_base", attn.positive_real("rotary_emb_base", 10000)}};
}

}  // namespace

json normalise_gpt_neox(const ConfigFields& fields) {
  refuse_scaled_positions(fields);
  const std::string act = fields.text("hidden_act", "gelu");
  if (act != "gelu") fields.refuse("hidden_act", "is {}; only gelu is supported", printable(act));
  json out;
  out["model_type"] = "gpt_neox";
  out["vocab_size"] = fields.positive("vocab_size", 50432);
  const int64_t hidden = fields.positive("hidden_size", 6144),
                heads = fields.positive("num_attention_heads", 64);
  out["hidden_size"] = hidden;
  out["num_hidden_layers"] = fields.positive("num_hidden_layers", 44);
  out["num_attention_heads"] = heads;
  if (hidden % heads != 0)
    fields.refuse("num_attention_heads", "is {}, which does not divide {}", heads, hidden);
  if (hidden > INT32_MAX / 3) fields.refuse("hidden_size", "is {}", hidden);
  out["intermediate_size"] = fields.positive("intermediate_size", 24576);
  out["hidden_act"] = "gelu";
  out["layer_norm_eps"] = fields.positive_real("layer_norm_eps", 1e-5);
  const double share = rotary(fields, "partial_rotary_factor", "rotary_pct", 0.25);
  const auto rotated = static_cast<int64_t>(static_cast<double>(hidden / heads) * std::min(share, 2.0));
  if (share > 1 || rotated % 2 != 0)
    fields.refuse("rotary_pct", "is {}, which rotates {} of the {} elements of a head", share, rotated,
                  hidden / heads);
  out["rotary_pct"] = share;
  out["rotary_emb_base"] = rotary(fields, "rope_theta", "rotary_emb_base", 10000);
  out["use_parallel_residual"] = fields.flag("use_parallel_residual", true);
  out["attention_bias"] = fields.flag("attention_bias", true);
  out["max_position_embeddings"] = fields.positive("max_position_embeddings", 2048);
  out["tie_word_embeddings"] = fields.flag("tie_word_embeddings", false);
  out["bos_token_id"] = fields.token_id("bos_token_id", 0);
  out["eos_token_id"] = fields.token_ids("eos_token_id", 2);
  out["pad_token_id"] = fields.token_id("pad_token_id", nullptr);
  return out;
}

bool is_hybrid(const ConfigFields& fields) {
  const json* layers = fields.find("attn_layer_idx");
  return (layers && !(layers->is_array() && layers->empty())) || fields.natural("d_intermediate", 0) != 0;
}

void read_hybrid(const ConfigFields& fields, bool is_mamba2, json& out) {
  out["model_type"] = "mamba_hybrid";
  out["ssm_layer"] = is_mamba2 ? "Mamba2" : "Mamba1";
  out["attn_layer_idx"] = attention_layers(fields, out["num_hidden_layers"]);
  const json empty = json::object();
  const json* given = fields.find("attn_cfg");
  const ConfigFields attn(given ? *given : empty, fields.file(), "attn_cfg.");
  out["attn_cfg"] = out["attn_layer_idx"].empty() ? empty : attention_settings(attn, out["hidden_size"]);
  const int64_t width = fields.natural("d_intermediate", 0);
  if (width > INT32_MAX / 4) fields.refuse("d_intermediate", "is {}", width);
  out["d_intermediate"] = (width + kMlpMultiple - 1) / kMlpMultiple * kMlpMultiple;
}

}  // namespace ssm::io
