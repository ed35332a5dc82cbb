// A training run in a folder of its own: steps, validation, logs, checkpoints, resuming.
//
//   OUT/config.json, model.safetensors, tokenizer files   the result, when the run is done
//   OUT/adapter_config.json, adapter_model.safetensors    or this, of an adapter
//   OUT/checkpoints/step-N/                               checkpoint.h
//   OUT/metrics.jsonl, OUT/events/, OUT/report.html       metrics.h, report.h
#pragma once

#include <functional>
#include <optional>

#include "ssm/io/adapter.h"
#include "ssm/load/load_model.h"
#include "ssm/train/batches.h"
#include "ssm/train/metrics.h"
#include "ssm/train/trainer.h"

namespace ssm::train {

struct RunOptions {
  std::filesystem::path out;
  std::filesystem::path events = {};  // folder of TensorBoard's files; empty: OUT/events
  BatchOptions batches;
  int64_t steps = 1;                         // optimiser steps in all, those before a resume included
  int64_t accumulate = 1;                    // batches a step
  int64_t log_every = 10;                    // steps
  int64_t validate_every = 0;                // steps; 0: at the end only
  int64_t validate_tokens = 1 << 18;         // at most so many inputs of the held-out documents
  int64_t save_every = 0;                    // steps; 0: at the end, and where the run is stopped
  int64_t keep = 2;                          // checkpoints
  bool resume = false;                       // go on from the newest checkpoint of OUT, if there is one
  DType stored = DType::f32;                 // of the result's matrices
  std::optional<io::AdapterConfig> adapter;  // an adapter is trained: it is what is written
  std::string tokenizer_json = {};           // the result's, where the model's folder brings none
  nlohmann::ordered_json about;              // what the log and the report say of the run

  void check() const;
};

struct RunEvents {
  std::function<void(const Metrics& metrics, double seconds_left)> step;  // every step
  std::function<bool()> stop;  // asked between steps: true saves a checkpoint and ends the run
};

struct RunResult {
  int64_t steps = 0;
  bool finished = false;  // all steps were done, the result is written
  std::optional<double> loss, validation_loss;
};

// How many optimiser steps `epochs` are.
int64_t steps_of_epochs(const DocumentSet& documents, const BatchOptions& batches, int64_t accumulate,
                        double epochs);

// Throws Error; what stood in OUT before stays. A checkpoint that cannot be written (a full disk) is a
// warning as long as the run goes on, and an error at its end.
RunResult run_training(const LoadedModel& loaded, Trainer& trainer, const DocumentSet& documents,
                       const std::optional<DocumentSet>& held_out, const RunOptions& options,
                       const RunEvents& events = {});

// Batches of held-out documents, each of which comes once, in order; no more after `most_tokens` inputs.
void for_each_held_out(const DocumentSet& documents, BatchOptions batches, int64_t most_tokens,
                       const std::function<void(const Batch& batch)>& f);

// Mean negative log-likelihood in nats over the targets of `documents`, in windows of `batches.length`.
double validation_loss(Trainer& trainer, const DocumentSet& documents, const BatchOptions& batches,
                       int64_t most_tokens);

}  // namespace ssm::train
