// The arguments of the verbs that train: data, batches, optimiser, run.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "apps/ssm/model_options.h"
#include "ssm/train/run.h"

namespace ssm::app {

struct TrainArguments {
  ModelOptions model;
  std::vector<std::string> data, valid;
  std::string chat_template, column, separator = "<|endoftext|>", mode = "packed", schedule = "cosine", out,
                                     save_dtype = "f32";
  double valid_fraction = 0, epochs = 1;
  int64_t rows = 8, length = 512, accumulate = 1, steps = 0, warmup = -1;
  int64_t log_every = 10, validate_every = 0, save_every = 500, keep = 2;
  uint64_t seed = 0;
  double lr = 1e-3, min_lr = -1;
  bool resume = false, no_eos = false, keep_state_over_documents = false;
  train::TrainerOptions trainer;
};

void add_train_options(CLI::App& verb, TrainArguments& arguments);
void add_train_machine_flags(CLI::App& verb, TrainArguments& arguments);  // json, device, dtype, threads

// What products are computed in: bf16 on a card, with parameters in f32; f32 on a CPU.
LoadOptions train_execution(const TrainArguments& arguments);

// What the log and the report say of a run; `from`: the model it began with.
nlohmann::ordered_json about_run(const TrainArguments& arguments, const LoadedModel& loaded,
                                 const std::string& from, int64_t parameters, const train::RunOptions& run);

struct TrainData {
  std::optional<train::DocumentSet> documents, held_out;
};

// Tokenises (once; later runs map what is in the cache). `tokenizer`: as open_tokenizer takes it; empty:
// bytes. A chat template that was chosen becomes the model's.
TrainData open_train_data(const TrainArguments& arguments, LoadedModel& loaded,
                          const std::filesystem::path& tokenizer);

// Steps, schedule and the rest; `documents` say how long an epoch is.
train::RunOptions run_options(TrainArguments& arguments, const train::DocumentSet& documents);

// Runs with a progress line, stops at Ctrl-C and SIGTERM with a checkpoint, prints what came of it.
void train_and_report(const LoadedModel& loaded, train::Trainer& trainer, const TrainData& data,
                      const train::RunOptions& options, const TrainArguments& arguments);

}  // namespace ssm::app
