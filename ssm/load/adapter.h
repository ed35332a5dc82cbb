// LoRA adapters on a model in memory: attached beside its matrices, or merged into them.
#pragma once

#include <optional>
#include <vector>

#include "ssm/io/adapter.h"
#include "ssm/io/safetensors.h"
#include "ssm/load/parameters.h"
#include "ssm/models/causal_lm.h"

namespace ssm {

// Gives each module that `adapter` names its Lora, and replaces the tensors that it holds whole. Unmerged, as
// PEFT computes: a Lora on the embedding of a tied model changes the input side alone, and so does a whole
// embedding (the model is untied then). Throws Error naming file and tensor where one is missing, of another
// shape, or of a module that the model does not have.
void attach_adapter(CausalLm& model, const io::Adapter& adapter, const Placement& placement = {});

// Whether any module has a Lora.
bool has_lora(CausalLm& model);

// "..lora_A.weight" and the like: of an adapter, not of the model.
bool is_lora_name(std::string_view name);

// A new Lora of config.r at each module that one of config.target_modules names (by the end of its name).
// They begin as PEFT's: of a Linear A uniform within 1 / sqrt(in) and B zero, of an Embedding A zero and B
// normal, so the model computes what it did. f32, on the host; a value depends on seed, name and place alone.
// Throws Error for a target that names no module.
void add_lora(CausalLm& model, const io::AdapterConfig& config, uint64_t seed);

// The dropout of those Loras that the model has by now, which must keep them.
class Dropout {
 public:
  explicit Dropout(CausalLm& model);
  // From now on every Lora drops elements of its input, by a mask that depends on `seed` and its module
  // alone; nothing: none does.
  void set(std::optional<uint64_t> seed) const;

 private:
  std::vector<std::pair<nn::Lora*, uint64_t>> loras_;  // and the module's stream
};

// The parameters under Transformers' names without any Lora, W + scale B A in f32 rounded to `stored`; each
// made when it is written. Unties the model where its embedding or head has a Lora, since they differ then.
// The model must outlive them.
std::vector<io::LazyTensor> merged_parameters(CausalLm& model, DType stored);

}  // namespace ssm
