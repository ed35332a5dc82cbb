#include <cmath>

#include "ssm/io/config_fields.h"
#include "ssm/io/gguf_model.h"

namespace ssm::io {
namespace {

using nlohmann::json;

// The keys of one architecture, in one file.
class Keys {
 public:
  Keys(const GgufFile& file, std::string architecture)
      : file_(file), prefix_(std::move(architecture) + ".") {}

  std::string name(std::string_view key) const { return prefix_ + std::string(key); }
  int64_t positive(std::string_view key, std::optional<int64_t> fallback = {}) const {
    const std::optional<int64_t> value = file_.integer(name(key));
    if (!value && fallback) return *fallback;
    SSM_CHECK(value, "{} is missing", file_.describe_key(name(key)));
    SSM_CHECK(*value > 0 && *value <= INT32_MAX, "{} is {}, not a whole number from 1 to {}",
              file_.describe_key(name(key)), *value, INT32_MAX);
    return *value;
  }
  double positive_real(std::string_view key) const {
    const std::optional<double> value = file_.real(name(key));
    SSM_CHECK(value, "{} is missing", file_.describe_key(name(key)));
    SSM_CHECK(std::isfinite(*value) && *value > 0, "{} is {}, not a positive number",
              file_.describe_key(name(key)), *value);
    return *value;
  }
  bool flag(std::string_view key) const { return file_.flag(name(key)).value_or(false); }

 private:
  const GgufFile& file_;
  std::string prefix_;
};

// What makes int(factor * whole) `part`, a whole number if one does: Transformers' configs have such factors.
json factor_of(int64_t part, int64_t whole) {
  if (part % whole == 0) return part / whole;
  const auto width = static_cast<double>(whole);
  double factor = static_cast<double>(part) / width;
  if (std::trunc(factor * width) < static_cast<double>(part)) factor = std::nextafter(factor, HUGE_VAL);
  return factor;
}

json token_id(const GgufFile& file, std::string_view key) {
  const std::string name = "tokenizer.ggml." + std::string(key);
  const std::optional<int64_t> id = file.integer(name);
  if (!id || *id == -1 || *id == UINT32_MAX) return nullptr;  // both stand for none
  SSM_CHECK(*id >= 0 && *id <= INT32_MAX, "{} is {}, not a token id", file.describe_key(name), *id);
  return *id;
}

// The end of a text, and where a file has one, the end of a turn.
json end_tokens(const GgufFile& file) {
  const json eos = token_id(file, "eos_token_id"), turn = token_id(file, "eot_token_id");
  if (eos.is_null() || turn.is_null() || eos == turn) return eos.is_null() ? turn : eos;
  return {eos, turn};
}

int64_t rows_of_embedding(const GgufFile& file) {
  const GgufFile::Entry* embedding = file.entry("token_embd.weight");
  SSM_CHECK(embedding, "{}: is missing", file.describe("token_embd.weight"));
  SSM_CHECK(embedding->shape.rank() == 2 && embedding->shape[0] <= INT32_MAX,
            "{}: has shape {}, not a row for each token", file.describe("token_embd.weight"),
            embedding->shape);
  return embedding->shape[0];
}

// Of any architecture.
json read_common(const GgufFile& file, const Keys& keys) {
  return {{"vocab_size", rows_of_embedding(file)},
          {"hidden_size", keys.positive("embedding_length")},
          {"num_hidden_layers", keys.positive("block_count")},
          {"tie_word_embeddings", file.entry("output.weight") == nullptr},
          {"bos_token_id", token_id(file, "bos_token_id")},
          {"eos_token_id", end_tokens(file)},
          {"pad_token_id", token_id(file, "padding_token_id")}};
}

void read_mamba2(const GgufFile& file, const Keys& keys, json& config) {
  const int64_t inner = config["intermediate_size"], heads = keys.positive("ssm.time_step_rank");
  const int64_t groups = keys.positive("ssm.group_count");
  SSM_CHECK(inner % heads == 0, "{} is {}, which does not divide the {} inner channels",
            file.describe_key(keys.name("ssm.time_step_rank")), heads, inner);
  SSM_CHECK(heads % groups == 0, "{} is {}, which does not divide the {} heads",
            file.describe_key(keys.name("ssm.group_count")), groups, heads);
  config["num_heads"] = heads;
  config["head_dim"] = inner / heads;
  config["n_groups"] = groups;
}

json read_gptneox(const GgufFile& file, const Keys& keys) {
  json config = read_common(file, keys);
  config["model_type"] = "gpt_neox";
  config["num_attention_heads"] = keys.positive("attention.head_count");
  config["intermediate_size"] = keys.positive("feed_forward_length");
  config["layer_norm_eps"] = keys.positive_real("attention.layer_norm_epsilon");
  config["max_position_embeddings"] = keys.positive("context_length", 2048);
  config["use_parallel_residual"] = file.flag(keys.name("use_parallel_residual")).value_or(true);
  config["attention_bias"] = file.entry("blk.0.attn_qkv.bias") != nullptr;
  const int64_t hidden = config["hidden_size"], heads = config["num_attention_heads"];
  SSM_CHECK(hidden % heads == 0, "{} is {}, which does not divide {}",
            file.describe_key(keys.name("attention.head_count")), heads, hidden);
  const int64_t rotated = keys.positive("rope.dimension_count");
  SSM_CHECK(rotated <= hidden / heads && rotated % 2 == 0, "{} is {}, not an even number up to {}",
            file.describe_key(keys.name("rope.dimension_count")), rotated, hidden / heads);
  config["rotary_pct"] = factor_of(rotated, hidden / heads);
  config["rotary_emb_base"] = file.real(keys.name("rope.freq_base")).value_or(10000);
  return normalise_transformers(config, file.file());
}

}  // namespace

json gguf_config(const GgufFile& file) {
  const std::string architecture(file.text("general.architecture").value_or(""));
  SSM_CHECK(!architecture.empty(), "{} is missing", file.describe_key("general.architecture"));
  SSM_CHECK(architecture == "mamba" || architecture == "mamba2" || architecture == "gptneox",
            "{} is {}; supported are mamba (FalconMamba included), mamba2 and gptneox",
            file.describe_key("general.architecture"), printable(architecture));
  SSM_CHECK(file.integer("split.count").value_or(1) <= 1,
            "{} is {}: a model in several files must be joined first (llama-gguf-split --merge)",
            file.describe_key("split.count"), *file.integer("split.count"));
  const Keys keys(file, architecture);
  if (architecture == "gptneox") return read_gptneox(file, keys);
  const bool is_mamba2 = architecture == "mamba2";
  json config = read_common(file, keys);
  config["model_type"] = !is_mamba2 && keys.flag("ssm.dt_b_c_rms") ? "falcon_mamba" : architecture;
  config["state_size"] = keys.positive("ssm.state_size");
  config["conv_kernel"] = keys.positive("ssm.conv_kernel");
  config["intermediate_size"] = keys.positive("ssm.inner_size");
  config["expand"] = factor_of(config["intermediate_size"], config["hidden_size"]);
  config["layer_norm_epsilon"] = keys.positive_real("attention.layer_norm_rms_epsilon");
  if (is_mamba2) {
    read_mamba2(file, keys, config);
  } else {
    config["time_step_rank"] = keys.positive("ssm.time_step_rank");
  }
  return normalise_transformers(config, file.file());
}

}  // namespace ssm::io
