#include "apps/ssm/model_options.h"

#include "apps/ssm/flags.h"
#include "apps/ssm/output.h"
#include "apps/ssm/resolve_model.h"
#include "ssm/core/parallel.h"

namespace ssm::app {

void add_model_argument(CLI::App& verb, ModelOptions& options) {
  verb.add_option("MODEL", options.model, fmt::format("{}; absent: the bundled model", kModelHelp));
}

void add_tokenizer_flag(CLI::App& verb, ModelOptions& options) {
  verb.add_option("--tokenizer", options.tokenizer,
                  "tokenizer.json, tokenizer.model, a .gguf file or a folder with one")
      ->option_text("PATH");
}

void add_adapter_flag(CLI::App& verb, ModelOptions& options) {
  verb.add_option("--adapter", options.adapter, "A LoRA adapter for the model, in PEFT's layout")
      ->option_text("FOLDER");
}

void add_group_flag(CLI::App& verb, int64_t& group, bool& given) {
  verb.add_option("--group", group, "Weights that share a scale in int4 and int8: 32, 64 (default) or 128")
      ->check(CLI::IsMember({32, 64, 128}))
      ->each([&given](const std::string&) { given = true; })
      ->option_text("N");
}

void add_quantize_flags(CLI::App& verb, ModelOptions& options) {
  verb.add_option("--quantize", options.quantize,
                  fmt::format("Pack the matrices while loading: {}", fmt::join(quantization_types(), ", ")))
      ->check(CLI::IsMember(quantization_types()))
      ->option_text("TYPE");
  add_group_flag(verb, options.group, options.group_given);
}

QuantFormat format_named(const std::string& type, int64_t group, bool group_given) {
  const bool has_groups = type == "int4" || type == "int8";
  check_usage(has_groups || !group_given, "--group {}: {}", group,
              type.empty() ? "of which type? give --quantize int4 or int8"
                           : fmt::format("the blocks of {} have their own size", type));
  const std::optional<QuantFormat> format = quant_format(type, group);
  SSM_CHECK(format, "{} group {}: no such type", type, group);
  return *format;
}

void add_chat_template_flag(CLI::App& verb, std::string& name) {
  verb.add_option("--chat-template", name,
                  "How conversations are written: a file in Jinja, the name of one of the model's templates, "
                  "or chatml, mistral or plain; without it the model's own")
      ->option_text("FILE|NAME");
}

void add_json_flag(CLI::App& verb, ModelOptions& options) {
  verb.add_flag("--json", options.json, "Print one JSON object");
}

void add_model_flags(CLI::App& verb, ModelOptions& options) {
  add_tokenizer_flag(verb, options);
  add_json_flag(verb, options);
  add_machine_flags(verb, options);
}

void add_machine_flags(CLI::App& verb, ModelOptions& options) {
  verb.add_option("--device", options.device, "auto (a card where one works), cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->option_text("NAME");
  verb.add_option("--dtype", options.dtype, "Of activations at matrix products: auto, f32, bf16 or f16")
      ->check(CLI::IsMember({"auto", "f32", "bf16", "f16"}))
      ->option_text("NAME");
  verb.add_option("--state-dtype", options.state_dtype, "How SSM states are kept: f32, bf16 or f16")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}))
      ->option_text("NAME");
  verb.add_option("--kv-memory", options.kv_memory,
                  "MiB that attention's keys and values may take; without it half of the machine's memory")
      ->transform(integer_between(1, int64_t{1} << 30))
      ->option_text("MIB");
  verb.add_option("--threads", options.threads, "CPU threads; without it OMP_NUM_THREADS, or one a CPU")
      ->transform(integer_between(1, 1024))
      ->option_text("N");
}

LoadOptions load_options(const ModelOptions& options) {
  LoadOptions load;
  set_num_threads(options.threads);
  if (options.device != "cpu") {
    const std::string why = why_unavailable(kCuda);
    if (why.empty()) load.device = kCuda;
    SSM_CHECK(why.empty() || options.device == "auto", "--device cuda: {}", why);
  }
  if (!options.quantize.empty() || options.group_given)
    load.quantization =
        Quantization{.format = format_named(options.quantize, options.group, options.group_given)};
  if (options.dtype != "auto") load.compute = dtype_from_name(options.dtype);
  load.state = *dtype_from_name(options.state_dtype);
  load.kv_bytes = static_cast<size_t>(options.kv_memory) << 20;
  load.tokenizer = options.tokenizer;
  load.adapter = options.adapter;
  return load;
}

LoadedModel load(const ModelOptions& options) {
  LoadOptions load = load_options(options);
  Progress line;
  if (load.quantization)
    load.progress = [&](int64_t done, int64_t all) { line.show_share("packing", done, all); };
  return load_model(resolve_model(options.model), load);
}

}  // namespace ssm::app
