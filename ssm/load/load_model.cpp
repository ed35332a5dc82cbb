#include "ssm/load/load_model.h"

#include "ssm/io/checkpoint.h"
#include "ssm/load/adapter.h"
#include "ssm/load/parameters.h"
#include "ssm/load/tokenizer.h"
#include "ssm/models/registry.h"
#include "ssm/ops/linear/linear.h"

namespace ssm {
namespace {

constexpr std::string_view kFirstMatrix = "backbone.layers.0.mixer.in_proj.weight";

std::vector<int32_t> eos_ids(const nlohmann::json& config, const text::Tokenizer* tokenizer) {
  std::vector<int32_t> ids;
  auto add = [&](int64_t id) {
    if (id >= 0 && std::find(ids.begin(), ids.end(), id) == ids.end())
      ids.push_back(static_cast<int32_t>(id));
  };
  if (tokenizer && tokenizer->eos()) add(*tokenizer->eos());
  const nlohmann::json& eos = config.at("eos_token_id");
  if (eos.is_number_integer()) add(eos);
  if (eos.is_array()) {
    for (const nlohmann::json& id : eos) add(id);
  }
  return ids;
}

}  // namespace

int64_t LoadedModel::usable_vocab() const {
  return tokenizer ? std::min(tokenizer->size(), model->vocab_size()) : model->vocab_size();
}

const text::Tokenizer& LoadedModel::need_tokenizer() const {
  if (!tokenizer) {
    fail(
        "{}: no tokenizer in this folder; put the model's tokenizer.json there (for state-spaces models the "
        "one of "
        "EleutherAI/gpt-neox-20b), name it with --tokenizer PATH, or give token ids with --tokens",
        folder.string());
  }
  return *tokenizer;
}

void set_execution(LoadedModel& loaded, const LoadOptions& options) {
  const std::string why = why_unavailable(options.device);
  SSM_CHECK(why.empty(), "{}: {}", name_of(options.device), why);
  SSM_CHECK(options.state == DType::f32 || options.device.is_cuda(),
            "states in {}: on a CPU they are kept in f32", name_of(options.state));
  loaded.device = options.device;
  loaded.state = options.state;
  loaded.compute = options.compute.value_or(multiplies_natively(loaded.stored, loaded.device) ? loaded.stored
                                                                                              : DType::f32);
}

Precision precision_of(const LoadedModel& loaded) {
  return {.compute = loaded.compute, .activations = activation_dtype(loaded.compute, loaded.device)};
}

LoadedModel load_model(const std::filesystem::path& folder, const LoadOptions& options) {
  const io::Checkpoint checkpoint = io::open_checkpoint(folder);
  LoadedModel loaded;
  loaded.folder = folder;
  loaded.config = checkpoint.config;
  loaded.layout = io::name_of(checkpoint.layout);
  if (const std::optional<Tensor> first = checkpoint.weights->find(kFirstMatrix))
    loaded.stored = first->dtype();
  set_execution(loaded, options);
  loaded.model = make_causal_lm(loaded.config, precision_of(loaded));
  const Placement placement =
      options.parameters_stay ? Placement{} : Placement{loaded.device, loaded.compute};
  fill_parameters(*loaded.model, *checkpoint.weights, placement);
  if (!options.adapter.empty()) {
    attach_adapter(*loaded.model, io::open_adapter(options.adapter), placement);
    loaded.config["tie_word_embeddings"] = loaded.model->tied();
  }
  const ParameterCount count = count_parameters(*loaded.model);
  loaded.parameters = count.parameters;
  loaded.weight_bytes = count.bytes;
  loaded.tokenizer = open_model_tokenizer(options.tokenizer.empty() ? folder : options.tokenizer);
  if (!options.tokenizer.empty()) {
    SSM_CHECK(loaded.tokenizer, "{}: no tokenizer there", options.tokenizer.string());
  }
  loaded.eos = eos_ids(loaded.config, loaded.tokenizer.get());
  return loaded;
}

}  // namespace ssm
