// Training an adapter instead of a model: which parameters change, and what of them is saved.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "ssm/io/adapter.h"
#include "ssm/train/trainer.h"

namespace ssm::train {

// For TrainerOptions::trained: every Lora; biases as PEFT has it (all: whatever has "bias" in its name,
// dt_bias too; lora_only: those of the target modules); and the modules and tensors of modules_to_save.
std::function<bool(std::string_view name)> trained_by(const io::AdapterConfig& config);

// Makes `model` ready to be trained so: new Loras, and a head of its own where the embedding or the head is
// to be trained whole. Throws Error for a name that the model does not have.
void begin_adapter(CausalLm& model, const io::AdapterConfig& config, uint64_t seed);

// Makes `model` ready to go on with the adapter in `folder`: its values, targets, rank and scale, by a fresh
// optimiser; `dropout` replaces its own. Returns what is written with the result. Throws Error naming the
// file, and the tensor or field: where it does not fit the model, where a module that is to be trained has no
// tensor in it, and where modules differ in rank (rank_pattern), which is not written.
io::AdapterConfig continue_adapter(CausalLm& model, const std::filesystem::path& folder,
                                   std::optional<double> dropout = {});

// What is trained, matrices in `stored`, the rest f32; or its averages.
std::vector<io::NamedTensor> adapter_tensors(const Trainer& trainer, DType stored, bool averaged = false);

}  // namespace ssm::train
