// Checkpoints of a run, one folder each: FOLDER/step-00000120/ holds a model that every other command reads
// (config.json, model.safetensors in f32, the tokenizer's files), training.safetensors (AdamW's moments,
// averages, carried states) and training.json (steps, position in the data, sizes and checksums of the two
// files), written last. Where an adapter is trained it holds that instead of a model. A folder appears whole
// or not at all; one that was damaged later is seen and passed over.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "ssm/io/adapter.h"
#include "ssm/load/load_model.h"
#include "ssm/train/trainer.h"

namespace ssm::train {

struct CheckpointInfo {
  int64_t steps = 0;
  nlohmann::json position;  // BatchPosition
  nlohmann::json run;       // whatever else the caller wants back
};

// `adapter`: of a run that trains one, null otherwise. Throws Error naming the file that cannot be written;
// then nothing new stands in `folder`. Afterwards only
// the `keep` newest checkpoints are left there.
void save_checkpoint(const std::filesystem::path& folder, Trainer& trainer, const LoadedModel& loaded,
                     const CheckpointInfo& info, int64_t keep, const io::AdapterConfig* adapter = nullptr);

// The newest checkpoint of `folder` that is whole; a warning names each one that is not. Nothing when there
// is none.
std::optional<std::filesystem::path> newest_checkpoint(const std::filesystem::path& folder);

// Fills the trainer from a checkpoint. Throws Error naming file and tensor.
CheckpointInfo restore_checkpoint(const std::filesystem::path& checkpoint, Trainer& trainer);

}  // namespace ssm::train
