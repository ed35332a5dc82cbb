#include "ssm/models/attention.h"

namespace ssm {

AttentionMixer::AttentionMixer(const AttentionHeads& heads, const Names& names, const nn::Linear& in,
                               const nn::Linear& out, const nn::Conv1d& conv)
    : heads_(heads), names_(names), in_proj_(in), out_proj_(out), conv1d_(conv) {}

// qkv [T, (H + 2Hk) D] -> [T, H D]
Tensor AttentionMixer::mix(Tensor qkv, const SequenceBatch& batch, const MixerState& state) const {
  if (conv1d_.width > 0) qkv = conv1d_(qkv, batch, state.conv);
  return attention(qkv, heads_, batch, state.kv.get());
}

MixerState AttentionMixer::make_state(int64_t slots, StateOptions options) const {
  MixerState state;
  if (conv1d_.width > 0)
    state.conv = Tensor::zeros({slots, conv1d_.width - 1, heads_.width()}, DType::f32, options.device);
  const KvStorage storage{options.device, options.device.is_cuda() ? in_proj_.compute : DType::f32};
  state.kv = std::make_shared<KvCache>(slots, heads_.kv_heads, heads_.head_dim, options.kv_budget, storage);
  return state;
}

void AttentionMixer::visit(nn::Visitor& v) {
  v.child(names_.in, in_proj_);
  if (conv1d_.width > 0) v.child("conv1d", conv1d_);
  v.child(names_.out, out_proj_);
}

void AttentionMixer::prepare() {
  in_proj_.prepare();
  out_proj_.prepare();
}

std::unique_ptr<Mixer> make_neox_attention(const nlohmann::json& config, DType compute) {
  const int64_t M = config.at("hidden_size"), H = config.at("num_attention_heads");
  const bool bias = config.at("attention_bias");
  const AttentionHeads heads{
      .heads = H,
      .kv_heads = H,
      .head_dim = M / H,
      .rotary_dim = static_cast<int64_t>(static_cast<double>(M / H) * config.at("rotary_pct").get<double>()),
      .rotary_base = config.at("rotary_emb_base"),
      .by_head = true};
  return std::make_unique<AttentionMixer>(
      heads, AttentionMixer::Names{"query_key_value", "dense"},
      nn::Linear{.in = M, .out = 3 * M, .has_bias = bias, .compute = compute},
      nn::Linear{.in = M, .out = M, .has_bias = bias, .compute = compute}, nn::Conv1d{});
}

std::unique_ptr<Mixer> make_hybrid_attention(const nlohmann::json& config, DType compute) {
  const nlohmann::json& attn = config.at("attn_cfg");
  const int64_t M = config.at("hidden_size");
  const AttentionHeads heads{.heads = attn.at("num_heads"),
                             .kv_heads = attn.at("num_heads_kv"),
                             .head_dim = attn.at("head_dim"),
                             .rotary_dim = attn.at("rotary_emb_dim"),
                             .rotary_base = attn.at("rotary_emb_base")};
  nn::Conv1d conv{.channels = heads.width(), .width = attn.at("d_conv"), .activation = Activation::none};
  return std::make_unique<AttentionMixer>(
      heads, AttentionMixer::Names{"in_proj", "out_proj"},
      nn::Linear{.in = M, .out = heads.width(), .has_bias = attn.at("qkv_proj_bias"), .compute = compute},
      nn::Linear{.in = heads.heads * heads.head_dim,
                 .out = M,
                 .has_bias = attn.at("out_proj_bias"),
                 .compute = compute},
      conv);
}

}  // namespace ssm
