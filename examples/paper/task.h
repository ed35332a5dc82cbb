// What the paper's synthetic tasks share: a small model trained from scratch on sequences that are made as
// they are needed, its accuracy, and runs that go on where they stopped. A sequence depends on seed and
// number alone, so nothing of the data is kept.
#pragma once

#include <CLI/CLI.hpp>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "ssm/load/load_model.h"
#include "ssm/train/trainer.h"

namespace paper {

struct Options {
  std::filesystem::path out = {};
  std::string family = "mamba", device = "auto", dtype = "f32", schedule = "constant";
  int64_t steps = 1000, rows = 64, width = 64, layers = 2, state = 16;
  int64_t tests = 256, evaluate_every = 500, save_every = 500, log_every = 100;
  double lr = 1e-3, weight_decay = 0, beta2 = 0.999, minutes = 0, stop_at = 2;
  uint64_t seed = 0;
  int threads = 0;
};

// Adds the flags of all of them; `options` holds the task's defaults.
void add_options(CLI::App& program, Options& options);

struct Sequence {
  std::vector<int32_t> ids, targets;  // as long as each other; target -1: none
};

struct Task {
  int64_t vocab = 16;
  bool tied = true;
  std::function<Sequence(int64_t)> train = {};  // the i-th sequence; asked by several threads
  std::function<Sequence(int64_t)> test = {};   // others
};

// For Rng: a stream of its own for sequence i of `what`.
uint64_t stream(std::string_view what, int64_t i);

class Study {
 public:
  Study(const Options& options, const Task& task);  // goes on from options.out, where there is a checkpoint

  // Steps until all are done, the time is over, or the accuracy on the tests reaches stop_at. One JSON object
  // a line on standard output. True: the study is over, not only the time.
  bool run();
  // Of all targets of `count` tests the share that the model says right.
  double accuracy(const std::function<Sequence(int64_t)>& test, int64_t count);

  ssm::LoadedModel& loaded() { return loaded_; }
  int64_t parameters() const { return trainer_->parameters().count(); }

 private:
  ssm::train::Batch batch_of(const std::function<Sequence(int64_t)>& sequences, int64_t begin,
                             int64_t end) const;
  bool over() const { return accuracy_ >= options_.stop_at || trainer_->steps_done() >= options_.steps; }
  void evaluate();
  void save();

  const Options& options_;
  const Task& task_;
  ssm::LoadedModel loaded_;
  std::unique_ptr<ssm::train::Trainer> trainer_;
  double seconds_ = 0, accuracy_ = -1, loss_ = 0;
};

// main() of a task: errors become one line and exit code 1.
int run_program(int argc, char** argv, const std::string& description, Options& options,
                const std::function<void(CLI::App&)>& add_flags, const std::function<void()>& body);

}  // namespace paper
