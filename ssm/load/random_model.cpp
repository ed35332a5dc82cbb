#include "ssm/load/random_model.h"

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "ssm/core/parallel.h"
#include "ssm/core/rng.h"
#include "ssm/io/config.h"
#include "ssm/load/parameters.h"
#include "ssm/models/registry.h"
#include "ssm/ops/linear/linear.h"

namespace ssm {
namespace {

struct NamedShape {
  std::string_view name;
  std::string_view model_type;
  int64_t layers, hidden, vocab;
  int64_t heads = 0;  // of attention, in GPT-NeoX
};

constexpr std::array<NamedShape, 24> kShapes{{{"mamba-130m", "mamba", 24, 768, 50280},
                                              {"mamba-370m", "mamba", 48, 1024, 50280},
                                              {"mamba-790m", "mamba", 48, 1536, 50280},
                                              {"mamba-1.4b", "mamba", 48, 2048, 50280},
                                              {"mamba-2.8b", "mamba", 64, 2560, 50280},
                                              {"falcon-mamba-7b", "falcon_mamba", 64, 4096, 65024},
                                              {"mamba2-130m", "mamba2", 24, 768, 50288},
                                              {"mamba2-370m", "mamba2", 48, 1024, 50288},
                                              {"mamba2-780m", "mamba2", 48, 1536, 50288},
                                              {"mamba2-1.3b", "mamba2", 48, 2048, 50288},
                                              {"mamba2-2.7b", "mamba2", 64, 2560, 50288},
                                              {"mamba-codestral-7b-v0.1", "mamba2", 64, 4096, 32768},
                                              {"mamba2attn-2.7b", "mamba_hybrid", 64, 2560, 50288},
                                              {"transformerpp-2.7b", "mamba_hybrid", 32, 2560, 50288},
                                              {"pythia-14m", "gpt_neox", 6, 128, 50304, 4},
                                              {"pythia-31m", "gpt_neox", 6, 256, 50304, 8},
                                              {"pythia-70m", "gpt_neox", 6, 512, 50304, 8},
                                              {"pythia-160m", "gpt_neox", 12, 768, 50304, 12},
                                              {"pythia-410m", "gpt_neox", 24, 1024, 50304, 16},
                                              {"pythia-1b", "gpt_neox", 16, 2048, 50304, 8},
                                              {"pythia-1.4b", "gpt_neox", 24, 2048, 50304, 16},
                                              {"pythia-2.8b", "gpt_neox", 32, 2560, 50304, 32},
                                              {"pythia-6.9b", "gpt_neox", 32, 4096, 50432, 32},
                                              {"pythia-12b", "gpt_neox", 36, 5120, 50688, 40}}};

nlohmann::json mamba_config(const NamedShape& shape) {
  const bool falcon = shape.model_type == "falcon_mamba", codestral = shape.vocab == 32768;
  nlohmann::json config{{"model_type", shape.model_type},
                        {"vocab_size", shape.vocab},
                        {"hidden_size", shape.hidden},
                        {"num_hidden_layers", shape.layers},
                        {"expand", 2},
                        {"intermediate_size", 2 * shape.hidden},
                        {"conv_kernel", 4},
                        {"use_bias", false},
                        {"use_conv_bias", true},
                        {"layer_norm_epsilon", 1e-5},
                        {"tie_word_embeddings", !falcon && !codestral},
                        {"eos_token_id", nullptr}};
  if (shape.model_type == "mamba2" || shape.model_type == "mamba_hybrid") {
    config.update({{"state_size", 128},
                   {"head_dim", 64},
                   {"num_heads", 2 * shape.hidden / 64},
                   {"n_groups", codestral ? 8 : 1},
                   {"time_step_limit", {0.0, std::numeric_limits<double>::infinity()}},
                   {"D_has_hdim", false}});
  } else {
    config.update(
        {{"state_size", 16}, {"time_step_rank", (shape.hidden + 15) / 16}, {"mixer_rms_eps", 1e-6}});
  }
  return config;
}

// Of mamba_ssm: six layers of 64 are attention, or all of 32, which have an MLP too.
nlohmann::json hybrid_config(const NamedShape& shape) {
  nlohmann::json config = mamba_config(shape);
  const bool all = shape.layers == 32;
  std::vector<int64_t> attending{9, 18, 27, 36, 45, 56};
  if (all) {
    attending.resize(static_cast<size_t>(shape.layers));
    std::iota(attending.begin(), attending.end(), 0);
  }
  config.update({{"ssm_layer", "Mamba2"},
                 {"attn_layer_idx", attending},
                 {"attn_cfg",
                  {{"causal", true},
                   {"d_conv", all ? 0 : 4},
                   {"head_dim", 128},
                   {"num_heads", all ? 20 : 30},
                   {"num_heads_kv", all ? 20 : 30},
                   {"out_proj_bias", false},
                   {"qkv_proj_bias", false},
                   {"rotary_emb_dim", 64},
                   {"rotary_emb_base", 10000.0}}},
                 {"d_intermediate", all ? 6912 : 0}});
  return config;
}

nlohmann::json neox_config(const NamedShape& shape) {
  nlohmann::json config = io::normalise_config({{"model_type", shape.model_type},
                                                {"vocab_size", shape.vocab},
                                                {"hidden_size", shape.hidden},
                                                {"num_hidden_layers", shape.layers},
                                                {"num_attention_heads", shape.heads},
                                                {"intermediate_size", 4 * shape.hidden}},
                                               io::Layout::transformers, std::string(shape.name));
  config["eos_token_id"] = nullptr;
  return config;
}

nlohmann::json config_of(const NamedShape& shape) {
  if (shape.model_type == "gpt_neox") return neox_config(shape);
  return shape.model_type == "mamba_hybrid" ? hybrid_config(shape) : mamba_config(shape);
}

// Fills with values of the reference initialisation's scale. A block of them repeats: only sizes matter here,
// and billions of draws would take longer than the benchmark.
class Randomizer final : public nn::Visitor {
 public:
  Randomizer(DType stored, const Placement& placement, const std::optional<Quantization>& quantization)
      : stored_(stored), placement_(placement), quantization_(quantization) {}

 protected:
  void on_weight(const std::string& name, Weight& weight, const Shape& shape) override {
    if (!quantization_) {
      weight = place_weight(random(shape), placement_);
      return;
    }
    const int64_t some = std::min<int64_t>(shape[0], 64);
    weight = quantized(random({some, shape[1]}), *quantization_, name, name);
    if (auto* dense = std::get_if<Tensor>(&weight))
      weight = repeated(*dense, shape);
    else if (auto* packed = std::get_if<QuantizedTensor>(&weight))
      weight = packed_view(packed->format, shape, repeated(packed->bytes, {shape[0], packed->bytes.size(1)}));
    weight = place_weight(weight, placement_);
  }
  void on_tensor(const std::string& name, Tensor& tensor, const Shape& shape, nn::Storage storage) override {
    Tensor t = Tensor::empty(shape);
    const bool A_log = name.ends_with("A_log"), one = begins_as_one(name);
    const bool dt = name.ends_with("dt_bias") || name.ends_with("dt_proj.bias");
    int64_t i = 0;
    for (float& x : t.values<float>()) {
      const auto n = static_cast<float>(i++ % shape[shape.rank() - 1] % 16 + 1);
      x = A_log ? std::log(n) : one ? 1.0f : dt ? -4.0f + rng_.normal() : 0.2f * rng_.normal();
    }
    tensor = nn::stored_as(t, storage).to(placement_.device);
  }

 private:
  Tensor random(const Shape& shape) {
    const float scale = 0.5f / std::sqrt(static_cast<float>(shape[1]));
    Tensor block = Tensor::empty({std::min<int64_t>(shape.numel(), int64_t{1} << 16)});
    for (float& x : block.values<float>()) x = scale * rng_.normal();
    return repeated(block.to(stored_), shape);
  }

  // `block`'s elements over and over.
  static Tensor repeated(const Tensor& block, const Shape& shape) {
    Tensor t = Tensor::empty(shape, block.dtype());
    const auto size = static_cast<int64_t>(block.bytes()), total = static_cast<int64_t>(t.bytes());
    parallel_for((total + size - 1) / size, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        std::memcpy(t.raw() + i * size, block.raw(), static_cast<size_t>(std::min(size, total - i * size)));
      }
    });
    return t;
  }

  DType stored_;
  Placement placement_;
  const std::optional<Quantization>& quantization_;
  Rng rng_{1};
};

}  // namespace

std::vector<std::string> named_shapes() {
  std::vector<std::string> names;
  for (const NamedShape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

std::optional<nlohmann::json> named_shape(std::string_view name) {
  if (const size_t slash = name.rfind('/'); slash != std::string_view::npos) name.remove_prefix(slash + 1);
  for (const NamedShape& shape : kShapes) {
    if (shape.name == name) return config_of(shape);
  }
  return std::nullopt;
}

LoadedModel random_model(const nlohmann::json& config, DType stored, const LoadOptions& options) {
  LoadedModel loaded;
  loaded.config = config;
  loaded.layout = "random";
  loaded.stored = stored;
  if (options.quantization) loaded.packed = options.quantization->format;
  set_execution(loaded, options);
  loaded.model = make_causal_lm(config, precision_of(loaded));
  Randomizer randomizer(stored, {loaded.device, loaded.compute}, options.quantization);
  loaded.model->visit(randomizer);
  loaded.model->prepare();
  const ParameterCount count = count_parameters(*loaded.model);
  loaded.parameters = count.parameters;
  loaded.weight_bytes = count.bytes;
  return loaded;
}

}  // namespace ssm
