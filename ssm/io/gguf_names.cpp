#include <algorithm>
#include <array>

#include "ssm/io/gguf_model.h"

namespace ssm::io {
namespace {

struct Pair {
  std::string_view gguf, transformers;
};
constexpr std::array kOutside{Pair{"token_embd.weight", "backbone.embeddings.weight"},
                              Pair{"output_norm.weight", "backbone.norm_f.weight"},
                              Pair{"output.weight", "lm_head.weight"}};
// Of a layer. Mamba-2's dt_bias has no matrix beside it, and the name that Mamba-1's bias has.
constexpr std::array kInside{Pair{"attn_norm.weight", "norm.weight"},
                             Pair{"ssm_in.weight", "mixer.in_proj.weight"},
                             Pair{"ssm_conv1d.weight", "mixer.conv1d.weight"},
                             Pair{"ssm_conv1d.bias", "mixer.conv1d.bias"},
                             Pair{"ssm_x.weight", "mixer.x_proj.weight"},
                             Pair{"ssm_dt.weight", "mixer.dt_proj.weight"},
                             Pair{"ssm_dt.bias", "mixer.dt_proj.bias"},
                             Pair{"ssm_dt.bias", "mixer.dt_bias"},
                             Pair{"ssm_a", "mixer.A_log"},
                             Pair{"ssm_d", "mixer.D"},
                             Pair{"ssm_norm.weight", "mixer.norm.weight"},
                             Pair{"ssm_out.weight", "mixer.out_proj.weight"}};
constexpr std::string_view kLayer = "blk.", kTransformersLayer = "backbone.layers.";

constexpr std::array kNeoxOutside{Pair{"token_embd.weight", "gpt_neox.embed_in.weight"},
                                  Pair{"output_norm.weight", "gpt_neox.final_layer_norm.weight"},
                                  Pair{"output_norm.bias", "gpt_neox.final_layer_norm.bias"},
                                  Pair{"output.weight", "embed_out.weight"}};
// Modules of a layer, each with a weight and a bias.
constexpr std::array kNeoxInside{
    Pair{"attn_norm", "input_layernorm"},   Pair{"attn_qkv", "attention.query_key_value"},
    Pair{"attn_output", "attention.dense"}, Pair{"ffn_norm", "post_attention_layernorm"},
    Pair{"ffn_up", "mlp.dense_h_to_4h"},    Pair{"ffn_down", "mlp.dense_4h_to_h"}};
constexpr std::string_view kNeoxLayer = "gpt_neox.layers.";

struct InLayer {
  std::string_view number, rest;
};
// "blk.12.ssm_a" after its prefix; nothing: not so.
std::optional<InLayer> in_layer(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  const size_t dot = name.find('.');
  if (dot == name.npos || dot == 0 || name.find_first_not_of("0123456789") != dot) return std::nullopt;
  return InLayer{name.substr(0, dot), name.substr(dot + 1)};
}

template <class Table>
std::optional<std::string_view> lookup(const Table& table, std::string_view Pair::*from,
                                       std::string_view Pair::*to, std::string_view name, size_t skip = 0) {
  for (const Pair& pair : table) {
    if (pair.*from == name && skip-- == 0) return pair.*to;
  }
  return std::nullopt;
}

std::optional<std::string> neox_name(std::string_view name, std::string_view Pair::*from,
                                     std::string_view Pair::*to, std::string_view from_layer,
                                     std::string_view to_layer) {
  if (const auto outside = lookup(kNeoxOutside, from, to, name)) return std::string(*outside);
  const std::optional<InLayer> layer = in_layer(name, from_layer);
  const size_t dot = layer ? layer->rest.rfind('.') : name.npos;
  if (dot == name.npos) return std::nullopt;
  const std::string_view kind = layer->rest.substr(dot);
  const auto module = lookup(kNeoxInside, from, to, layer->rest.substr(0, dot));
  if (!module || (kind != ".weight" && kind != ".bias")) return std::nullopt;
  return fmt::format("{}{}.{}{}", to_layer, layer->number, *module, kind);
}

}  // namespace

std::optional<std::string> transformers_name(std::string_view name, std::string_view model_type) {
  if (model_type == "gpt_neox") return neox_name(name, &Pair::gguf, &Pair::transformers, kLayer, kNeoxLayer);
  if (const auto outside = lookup(kOutside, &Pair::gguf, &Pair::transformers, name))
    return std::string(*outside);
  const std::optional<InLayer> layer = in_layer(name, kLayer);
  if (!layer) return std::nullopt;
  const size_t second = model_type == "mamba2" && layer->rest == "ssm_dt.bias";
  const auto inside = lookup(kInside, &Pair::gguf, &Pair::transformers, layer->rest, second);
  if (!inside) return std::nullopt;
  return fmt::format("{}{}.{}", kTransformersLayer, layer->number, *inside);
}

std::optional<std::string> gguf_name(std::string_view name) {
  if (const auto neox = neox_name(name, &Pair::transformers, &Pair::gguf, kNeoxLayer, kLayer)) return neox;
  if (const auto outside = lookup(kOutside, &Pair::transformers, &Pair::gguf, name))
    return std::string(*outside);
  const std::optional<InLayer> layer = in_layer(name, kTransformersLayer);
  if (!layer) return std::nullopt;
  const auto inside = lookup(kInside, &Pair::transformers, &Pair::gguf, layer->rest);
  if (!inside) return std::nullopt;
  return fmt::format("{}{}.{}", kLayer, layer->number, *inside);
}

bool is_gguf_matrix(std::string_view name) {
  constexpr std::array<std::string_view, 12> kMatrices{
      "embeddings.weight", "lm_head.weight",  "in_proj.weight",         "x_proj.weight",
      "dt_proj.weight",    "out_proj.weight", "embed_in.weight",        "embed_out.weight",
      "dense.weight",      "h_to_4h.weight",  "query_key_value.weight", "4h_to_h.weight"};
  return std::any_of(kMatrices.begin(), kMatrices.end(), [&](auto end) { return name.ends_with(end); });
}

}  // namespace ssm::io
