// ssm info: what a model is and what it costs.
#include <fmt/ranges.h>

#include "apps/ssm/commands.h"
#include "apps/ssm/model_options.h"
#include "apps/ssm/output.h"
#include "ssm/core/parallel.h"
#include "ssm/load/chat.h"
#include "ssm/ops/linear/linear.h"
#include "ssm/ops/simd/kernel_target.h"
#include "ssm/runtime/state_pool.h"

namespace ssm::app {
namespace {

using Json = nlohmann::ordered_json;

Json id_or_null(const std::optional<int32_t>& id) { return id ? Json(*id) : Json(); }

Json describe(const LoadedModel& model) {
  const StatePool one(*model.model, 1, model.state);
  Json info{{"folder", model.folder.string()},
            {"family", model.config.at("model_type")},
            {"layout", model.layout},
            {"parameters", model.parameters},
            {"weight_bytes", model.weight_bytes},
            {"stored_dtype", model.stored_name()},
            {"compute_dtype", name_of(model.compute)},
            {"layers", model.model->num_layers()},
            {"hidden_size", model.model->hidden_size()},
            {"vocab_size", model.model->vocab_size()},
            {"usable_vocab_size", model.usable_vocab()},
            {"tied_embeddings", model.model->tied()}};
  for (const char* key : {"intermediate_size", "state_size", "conv_kernel", "time_step_rank", "num_heads",
                          "head_dim", "n_groups"}) {
    const bool of_mamba2 =
        std::string_view(key) != "time_step_rank";  // Mamba-2 files carry one that means nothing
    if (model.config.contains(key) && (model.config.at("model_type") != "mamba2" || of_mamba2))
      info[key] = model.config.at(key);
  }
  info["state_bytes_per_sequence"] = one.bytes_per_slot();
  if (one.attention_layers() > 0) {
    info["attention_layers"] = one.attention_layers();
    info["kv_bytes_per_token"] = one.kv_bytes_per_token();
    info["kv_memory_bytes"] = model.kv_bytes;
  }
  info["end_tokens"] = model.eos;
  info["tokenizer"] = nullptr;
  if (const text::Tokenizer* tokenizer = model.tokenizer.get()) {
    info["tokenizer"] = Json{{"size", tokenizer->size()},
                             {"bos", id_or_null(tokenizer->bos())},
                             {"eos", id_or_null(tokenizer->eos())},
                             {"text_begins_with_bos", begins_with_bos(model)},
                             {"has_chat_template", has_chat_template(model)}};
  }
  info["device"] = name_of(model.device);
  if (model.device.is_cuda()) info["card"] = description_of(model.device);
  info["cpu_kernels"] = kernel_target();
  info["native_bf16"] = multiplies_natively(DType::bf16, model.device);
  info["threads"] = num_threads();
  return info;
}

void print_table(const Json& info, const std::string& prefix = "") {
  for (const auto& [key, value] : info.items()) {
    if (value.is_object()) {
      print_table(value, key + " ");
      continue;
    }
    std::string name = prefix + key;
    std::replace(name.begin(), name.end(), '_', ' ');
    const std::string text = value.is_null()      ? "none"
                             : value.is_string()  ? value.get<std::string>()
                             : value.is_boolean() ? (value.get<bool>() ? "yes" : "no")
                             : value.is_array()
                                 ? fmt::format("{}", fmt::join(value.get<std::vector<int64_t>>(), ", "))
                                 : value.dump();
    standard_output().write(fmt::format("{:<32}{}\n", name, text));
  }
}

void run(const ModelOptions& options) {
  const Json info = describe(load(options));
  options.json ? print_json(info) : print_table(info);
}

}  // namespace

void add_info(CLI::App& program) {
  auto options = std::make_shared<ModelOptions>();
  CLI::App* verb = program.add_subcommand("info", "What a model is: family, sizes, types, tokenizer");
  add_model_argument(*verb, *options);
  add_model_flags(*verb, *options);
  verb->footer(
      "Examples:\n"
      "  ssm info\n"
      "  ssm info state-spaces/mamba-130m-hf --json");
  verb->callback([options] { run(*options); });
}

}  // namespace ssm::app
