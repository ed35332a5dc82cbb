#include "ssm/io/gguf_model_writer.h"

#include <array>
#include <cmath>
#include <limits>

#include "ssm/io/gguf_model.h"

namespace ssm::io {
namespace {

using nlohmann::json;

constexpr int64_t kContextLength = 1 << 20;  // the converter's: a Mamba has none
constexpr int64_t kQuantizationVersion = 2;  // ggml's

void check_sayable(const json& config, const std::string& file) {
  const auto refuse_if = [&](bool refused, const char* field) {
    SSM_CHECK(!refused, "{}: {} is {}, and GGUF has no key for that", file, field, config.at(field).dump());
  };
  const std::string type = config.at("model_type");
  SSM_CHECK(type != "mamba_hybrid", "{}: GGUF has no hybrids of mamba_ssm", file);
  if (type == "gpt_neox") return refuse_if(!config.at("attention_bias").get<bool>(), "attention_bias");
  refuse_if(config.at("use_bias").get<bool>(), "use_bias");
  refuse_if(!config.at("use_conv_bias").get<bool>(), "use_conv_bias");
  if (type == "falcon_mamba") refuse_if(config.at("mixer_rms_eps") != 1e-6, "mixer_rms_eps");
  if (config.at("model_type") != "mamba2") return;
  refuse_if(config.at("D_has_hdim").get<bool>(), "D_has_hdim");
  const json& limit = config.at("time_step_limit");
  SSM_CHECK(limit.at(0) == 0.0 && limit.at(1) == std::numeric_limits<double>::infinity(),
            "{}: time_step_limit is [{}, {}], and GGUF has no key for that", file, limit.at(0).get<double>(),
            limit.at(1).get<double>());
}

// llama.cpp's number for a file whose matrices are mostly of one type.
int64_t file_type(const GgmlType& type) {
  struct Known {
    std::string_view name;
    int64_t number;
  };
  constexpr std::array kKnown{Known{"F32", 0},   Known{"F16", 1},   Known{"Q4_0", 2},  Known{"Q4_1", 3},
                              Known{"Q8_0", 7},  Known{"Q5_0", 8},  Known{"Q5_1", 9},  Known{"Q2_K", 10},
                              Known{"Q3_K", 12}, Known{"Q4_K", 15}, Known{"Q5_K", 17}, Known{"Q6_K", 18},
                              Known{"BF16", 32}};
  for (const Known& known : kKnown) {
    if (known.name == type.name) return known.number;
  }
  return 0;
}

// The type that most weights have; and how many weights there are, "130M".
struct Summary {
  const GgmlType* type = ggml_type(DType::f32);
  std::string size;
};
Summary summary_of(std::span<const LazyWeight> weights) {
  Summary summary;
  int64_t total = 0, most = 0;
  std::map<uint32_t, int64_t> count;
  for (const LazyWeight& weight : weights) {
    total += weight.shape.numel();
    const GgmlType* type = std::visit([](const auto& t) { return ggml_type(t); }, weight.type);
    if (!type || weight.shape.rank() != 2 || weight.name.ends_with("A_log")) continue;
    int64_t& n = count[type->id] += weight.shape.numel();
    if (n > most) most = n, summary.type = type;
  }
  const auto n = static_cast<double>(total);
  summary.size = n >= 1e9   ? fmt::format("{:.1f}B", n / 1e9)
                 : n >= 1e6 ? fmt::format("{:.0f}M", n / 1e6)
                            : fmt::format("{:.0f}K", n / 1e3);
  return summary;
}

// The tensor as it lies in the file, in f32.
Tensor as_in_file(const Weight& weight, const Shape& shape, bool is_a_log) {
  const Tensor whole = dense(weight, "a vector of a model").to(DType::f32).row_major();
  if (!is_a_log) return whole.view(shape);
  const Tensor a = Tensor::empty(shape);
  for (int64_t i = 0; i < a.numel(); ++i)
    a.data<float>()[i] = static_cast<float>(-std::exp(static_cast<double>(whole.data<float>()[i])));
  return a;
}

// The shape in the file of what is no matrix.
Shape shape_in_file(const LazyWeight& weight, const json& config) {
  const Shape& shape = weight.shape;
  if (weight.name.ends_with("conv1d.weight")) return {shape[0], shape[2]};
  if (config.at("model_type") != "mamba2") return shape;
  if (weight.name.ends_with(".A_log") || weight.name.ends_with(".D")) return {shape[0], 1};
  if (!weight.name.ends_with(".mixer.norm.weight")) return shape;
  const int64_t groups = config.at("n_groups");
  return {groups, shape[0] / groups};
}

void add_mamba_keys(GgufWriter& writer, const json& config, const std::string& arch) {
  const bool is_mamba2 = arch == "mamba2";
  const auto size = [&](const char* key, const json& value) { writer.u32(arch + key, value.get<int64_t>()); };
  size(".context_length", kContextLength);
  size(".embedding_length", config.at("hidden_size"));
  size(".feed_forward_length", 0);
  size(".attention.head_count", 0);
  size(".block_count", config.at("num_hidden_layers"));
  size(".ssm.conv_kernel", config.at("conv_kernel"));
  size(".ssm.inner_size", config.at("intermediate_size"));
  size(".ssm.state_size", config.at("state_size"));
  size(".ssm.time_step_rank", config.at(is_mamba2 ? "num_heads" : "time_step_rank"));
  if (is_mamba2) size(".ssm.group_count", config.at("n_groups"));
  writer.f32(arch + ".attention.layer_norm_rms_epsilon", config.at("layer_norm_epsilon"));
  if (!is_mamba2) writer.flag("mamba.ssm.dt_b_c_rms", config.at("model_type") == "falcon_mamba");
}

void add_neox_keys(GgufWriter& writer, const json& config) {
  const int64_t hidden = config.at("hidden_size"), heads = config.at("num_attention_heads");
  const double rotated = static_cast<double>(hidden / heads) * config.at("rotary_pct").get<double>();
  writer.u32("gptneox.context_length", config.at("max_position_embeddings").get<int64_t>());
  writer.u32("gptneox.embedding_length", hidden);
  writer.u32("gptneox.block_count", config.at("num_hidden_layers").get<int64_t>());
  writer.u32("gptneox.feed_forward_length", config.at("intermediate_size").get<int64_t>());
  writer.u32("gptneox.rope.dimension_count", static_cast<int64_t>(rotated));
  writer.f32("gptneox.rope.freq_base", config.at("rotary_emb_base"));
  writer.u32("gptneox.attention.head_count", heads);
  writer.flag("gptneox.use_parallel_residual", config.at("use_parallel_residual").get<bool>());
  writer.f32("gptneox.attention.layer_norm_epsilon", config.at("layer_norm_eps"));
}

// query_key_value's weight or bias in GGUF's order of rows.
std::function<Weight()> in_gguf_order(const LazyWeight& weight, const json& config) {
  if (!is_fused_qkv(weight.name)) return weight.make;
  return [make = weight.make, heads = config.at("num_attention_heads").get<int64_t>()]() -> Weight {
    Weight made = make();
    if (auto* packed = std::get_if<QuantizedTensor>(&made)) {
      packed->bytes = reordered_qkv(packed->bytes, heads, QkvOrder::gguf);
      return made;
    }
    return reordered_qkv(std::get<Tensor>(made), heads, QkvOrder::gguf);
  };
}

}  // namespace

std::string gguf_architecture(const json& config) {
  const std::string type = config.at("model_type");
  if (type == "gpt_neox") return "gptneox";
  return type == "mamba2" ? "mamba2" : "mamba";
}

void add_model_keys(GgufWriter& writer, const json& config, const std::string& name,
                    std::span<const LazyWeight> weights) {
  check_sayable(config, writer.file());
  const std::string arch = gguf_architecture(config);
  const Summary summary = summary_of(weights);
  writer.text("general.architecture", arch);
  writer.text("general.type", "model");
  writer.text("general.name", name);
  writer.text("general.size_label", summary.size);
  arch == "gptneox" ? add_neox_keys(writer, config) : add_mamba_keys(writer, config, arch);
  writer.u32("general.file_type", file_type(*summary.type));
  writer.u32("general.quantization_version", kQuantizationVersion);
}

void add_model_tensors(GgufWriter& writer, const json& config, std::span<const LazyWeight> weights) {
  for (const LazyWeight& weight : weights) {
    const std::optional<std::string> in_file = gguf_name(weight.name);
    SSM_CHECK(in_file, "{}: tensor {} has no name in GGUF", writer.file(), printable(weight.name));
    const std::function<Weight()> make = in_gguf_order(weight, config);
    if (is_gguf_matrix(weight.name)) {
      writer.tensor({*in_file, weight.shape, weight.type, make});
      continue;
    }
    const Shape shape = shape_in_file(weight, config);
    const bool is_a_log = weight.name.ends_with(".A_log");
    writer.tensor({*in_file, shape, DType::f32,
                   [make, shape, is_a_log] { return as_in_file(make(), shape, is_a_log); }});
  }
}

}  // namespace ssm::io
