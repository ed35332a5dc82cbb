// The batch and the optimizer that PyTorch had for tests/goldens/training and adapters.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "ssm/io/safetensors.h"
#include "ssm/train/trainer.h"

namespace ssm::train {

inline const std::filesystem::path kGoldens = std::filesystem::path(SSM_SOURCE_DIR) / "tests/goldens";
constexpr int64_t kCut = 20;  // as scripts/make_training_goldens.py

// Sequences of one token more than inputs, none carried on.
inline Batch batch_of(const std::vector<std::vector<int32_t>>& documents) {
  Batch batch;
  for (const std::vector<int32_t>& ids : documents) {
    batch.ids.insert(batch.ids.end(), ids.begin(), ids.end());
    batch.targets.insert(batch.targets.end(), ids.begin() + 1, ids.end());
    batch.targets.push_back(-1);
    batch.lengths.push_back(std::ssize(ids));
    batch.streams.push_back(static_cast<int32_t>(batch.streams.size()));
    batch.continues.push_back(0);
    batch.carries_on.push_back(0);
    batch.learned += std::ssize(ids) - 1;
  }
  return batch;
}

// The golden prompt of a model of tests/goldens/models, as scripts/make_training_goldens.py cuts it.
inline std::vector<std::vector<int32_t>> golden_documents(const std::string& name) {
  const auto golden = io::SafetensorsFile::open(kGoldens / "models" / name / "golden.safetensors");
  const Tensor tokens = golden->find("tokens").value();
  const std::vector<int32_t> ids(tokens.values<int64_t>().begin(), tokens.values<int64_t>().end());
  return {{ids.begin(), ids.begin() + kCut}, {ids.begin() + kCut, ids.end()}};
}

inline Batch golden_batch(const std::string& name) { return batch_of(golden_documents(name)); }

// Its optimizer.
inline TrainerOptions torch_options() {
  TrainerOptions options;
  options.schedule = {.kind = ScheduleKind::constant, .lr = 1e-3};
  options.weight_decay = 0.1;
  return options;
}

}  // namespace ssm::train
