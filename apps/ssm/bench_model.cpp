#include "apps/ssm/bench_model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "apps/ssm/output.h"
#include "apps/ssm/resolve_model.h"
#include "ssm/core/rng.h"
#include "ssm/load/random_model.h"
#include "ssm/load/tokenizer.h"

namespace ssm::app {

LoadedModel open_for_bench(const ModelOptions& options, const std::string& stored, std::string& weights) {
  const LoadOptions load_as = load_options(options);
  const std::string& name = options.model;
  weights = "file";
  if (find_model(name)) return load(options);
  const std::optional<nlohmann::json> shape = named_shape(name);
  if (!shape) {
    fail("{}: no such folder, not in the model cache, and no known shape ({})", name,
         fmt::join(named_shapes(), ", "));
  }
  weights = "random";
  note(fmt::format("{} is not here: random weights of its shape", name));
  LoadedModel model = random_model(*shape, *dtype_from_name(stored), load_as);
  if (!options.tokenizer.empty()) model.tokenizer = open_model_tokenizer(options.tokenizer);
  return model;
}

void add_stored_flag(CLI::App& verb, std::string& stored) {
  verb.add_option("--stored", stored, "Type of random weights before --quantize: f32, bf16 (default) or f16")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}))
      ->option_text("NAME");
}

std::vector<std::vector<int32_t>> random_prompts(const LoadedModel& model, int64_t count, int64_t length) {
  std::vector<std::vector<int32_t>> prompts(static_cast<size_t>(count));
  Rng rng(7);
  for (auto& prompt : prompts) {
    for (int64_t i = 0; i < length; ++i)
      prompt.push_back(static_cast<int32_t>(rng.below(model.usable_vocab())));
  }
  return prompts;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

}  // namespace ssm::app
