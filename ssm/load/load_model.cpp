#include "ssm/load/load_model.h"

#include <unistd.h>

#include <array>
#include <future>

#include "ssm/io/checkpoint.h"
#include "ssm/load/adapter.h"
#include "ssm/load/parameters.h"
#include "ssm/load/tokenizer.h"
#include "ssm/models/registry.h"
#include "ssm/ops/linear/linear.h"

namespace ssm {
namespace {

// Of the first layer, one of a family's: its type stands for the file's.
constexpr std::array kFirstMatrices{"backbone.layers.0.mixer.in_proj.weight",
                                    "gpt_neox.layers.0.attention.query_key_value.weight"};

size_t memory_of_machine() {
  return static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGE_SIZE));
}

size_t default_kv_bytes(Device device) {
  return (device.is_cuda() ? memory_of(device).free : memory_of_machine()) / 2;
}

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

std::string LoadedModel::stored_name() const {
  return packed ? name_of(*packed) : std::string(name_of(stored));
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
  loaded.device = options.device;
  const std::string why = why_unavailable(loaded.device);
  SSM_CHECK(why.empty(), "{}: {}", name_of(loaded.device), why);
  SSM_CHECK(options.state == DType::f32 || options.state == DType::bf16 || options.state == DType::f16,
            "states in {}, expected f32, bf16 or f16", name_of(options.state));
  loaded.state = options.state;
  loaded.kv_bytes = options.kv_bytes > 0 ? options.kv_bytes : default_kv_bytes(loaded.device);
  // Packed codes are multiplied by what there is: by 32 bits on a CPU, on a card by 16, which prompts need.
  DType natural = multiplies_natively(loaded.stored, loaded.device) ? loaded.stored : DType::f32;
  if (loaded.packed && loaded.device.is_cuda())
    natural = loaded.stored == DType::f16 ? DType::f16 : DType::bf16;
  else if (loaded.packed)
    natural = DType::f32;
  loaded.compute = options.compute.value_or(natural);
}

Precision precision_of(const LoadedModel& loaded) {
  return {.compute = loaded.compute, .activations = activation_dtype(loaded.compute, loaded.device)};
}

LoadedModel load_model(const std::filesystem::path& folder, const LoadOptions& options) {
  // A large vocabulary takes as long as all of the rest; both are read at a time.
  std::future<std::unique_ptr<text::Tokenizer>> tokenizer = std::async(
      [&] { return open_model_tokenizer(options.tokenizer.empty() ? folder : options.tokenizer); });
  const io::Checkpoint checkpoint = io::open_checkpoint(folder);
  LoadedModel loaded;
  loaded.folder = folder;
  loaded.config = checkpoint.config;
  loaded.layout = io::name_of(checkpoint.layout);
  for (const char* name : kFirstMatrices) {
    if (const std::optional<Tensor> first = checkpoint.weights->find(name)) loaded.stored = first->dtype();
    if (const std::optional<QuantizedTensor> first = checkpoint.weights->find_packed(name))
      loaded.packed = first->format;
  }
  if (options.quantization) loaded.packed = options.quantization->format;
  set_execution(loaded, options);
  loaded.model = make_causal_lm(loaded.config, precision_of(loaded));
  const Placement placement =
      options.parameters_stay ? Placement{} : Placement{loaded.device, loaded.compute};
  fill_parameters(*loaded.model, *checkpoint.weights, placement,
                  options.quantization ? &*options.quantization : nullptr, options.progress);
  if (!options.adapter.empty()) {
    attach_adapter(*loaded.model, io::open_adapter(options.adapter), placement);
    loaded.config["tie_word_embeddings"] = loaded.model->tied();
  }
  if (options.kv_bytes == 0) loaded.kv_bytes = default_kv_bytes(loaded.device);  // beside the parameters
  const ParameterCount count = count_parameters(*loaded.model);
  loaded.parameters = count.parameters;
  loaded.weight_bytes = count.bytes;
  loaded.tokenizer = tokenizer.get();
  if (!options.tokenizer.empty()) {
    SSM_CHECK(loaded.tokenizer, "{}: no tokenizer there", options.tokenizer.string());
  }
  loaded.eos = eos_ids(loaded.config, loaded.tokenizer.get());
  return loaded;
}

}  // namespace ssm
