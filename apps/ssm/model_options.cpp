#include "apps/ssm/model_options.h"

#include "apps/ssm/resolve_model.h"
#include "apps/ssm/sampling_options.h"
#include "ssm/core/parallel.h"

namespace ssm::app {

void add_model_argument(CLI::App& verb, ModelOptions& options) {
  verb.add_option("MODEL", options.model, "A folder, or owner/name in the cache; absent: the bundled model");
}

void add_tokenizer_flag(CLI::App& verb, ModelOptions& options) {
  verb.add_option("--tokenizer", options.tokenizer, "tokenizer.json, tokenizer.model or a folder with one")
      ->option_text("PATH");
}

void add_json_flag(CLI::App& verb, ModelOptions& options) {
  verb.add_flag("--json", options.json, "Print one JSON object");
}

void add_model_flags(CLI::App& verb, ModelOptions& options) {
  add_tokenizer_flag(verb, options);
  add_json_flag(verb, options);
  verb.add_option("--device", options.device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->option_text("NAME");
  verb.add_option("--dtype", options.dtype, "Of activations at matrix products: auto, f32, bf16 or f16")
      ->check(CLI::IsMember({"auto", "f32", "bf16", "f16"}))
      ->option_text("NAME");
  verb.add_option("--threads", options.threads, "CPU threads; without it OMP_NUM_THREADS, or one a CPU")
      ->transform(integer_between(1, 1024))
      ->option_text("N");
}

void apply_machine_options(const ModelOptions& options) {
  if (options.device == "cuda") fail("--device cuda: this build has no CUDA support");
  set_num_threads(options.threads);
}

std::optional<DType> compute_of(const ModelOptions& options) {
  return options.dtype == "auto" ? std::nullopt : dtype_from_name(options.dtype);
}

LoadedModel load(const ModelOptions& options) {
  apply_machine_options(options);
  return load_model(resolve_model(options.model),
                    {.compute = compute_of(options), .tokenizer = options.tokenizer});
}

}  // namespace ssm::app
