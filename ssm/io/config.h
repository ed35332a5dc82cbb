// The configuration of a model folder, whatever its layout, as one JSON object in Transformers' key names.
// All families:      model_type, vocab_size (padded), hidden_size, num_hidden_layers, state_size, expand,
//                    intermediate_size (E, the one to use), conv_kernel, use_bias, use_conv_bias, hidden_act
//                    ("silu"), layer_norm_epsilon, residual_in_fp32, rms_norm (true), tie_word_embeddings,
//                    bos_token_id, eos_token_id (number, list or null), pad_token_id
// mamba, falcon_mamba: time_step_rank (a number); falcon_mamba: mixer_rms_eps
// mamba2:            num_heads, head_dim, n_groups, chunk_size, time_step_limit [low, high],
//                    norm_before_gate (false), D_has_hdim
// mamba_hybrid:      (mamba_ssm's) those of mamba or mamba2, and ssm_layer ("Mamba1" or "Mamba2"),
//                    attn_layer_idx, attn_cfg (causal, d_conv, head_dim, num_heads, num_heads_kv,
//                    out_proj_bias, qkv_proj_bias, rotary_emb_dim, rotary_emb_base; empty without such
//                    layers), d_intermediate (0: no MLP)
// gpt_neox:          instead of the first: model_type, vocab_size, hidden_size, num_hidden_layers,
//                    num_attention_heads, intermediate_size (of the MLP), hidden_act ("gelu"),
//                    layer_norm_eps, rotary_pct, rotary_emb_base, use_parallel_residual, attention_bias,
//                    max_position_embeddings, tie_word_embeddings, bos_token_id, eos_token_id, pad_token_id
// All of them are always present. Throws Error naming the file and the field: a wrong type, a number that
// makes no sense, a setting that changes the function and is not supported.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "ssm/io/checkpoint.h"

namespace ssm::io {

// The layout a parsed config.json or params.json belongs to; nothing when it is none of ours.
std::optional<Layout> layout_of_config(const nlohmann::json& config);

// Sizes that Mistral's params.json cannot say; its models have these, or what their tensors show.
struct MistralSizes {
  std::optional<int64_t> inner;  // E; 2 * dim
  int64_t head_dim = 64;
  int64_t state_size = 128;
  int64_t conv_kernel = 4;
};
// From layer 0's dt_bias [H], norm.weight [E] and conv1d.weight [E + 2GN, 1, K]; what does not fit is left to
// the check of shapes at loading.
MistralSizes sizes_from_tensors(const WeightSource& weights, int64_t groups);

// `file` is the name that errors begin with.
nlohmann::json normalise_config(const nlohmann::json& config, Layout layout, const std::string& file,
                                const MistralSizes& sizes = {});

// Parses (bare Infinity and NaN allowed), finds the layout and normalises.
nlohmann::json read_config(std::string_view text, const std::string& file);

}  // namespace ssm::io
