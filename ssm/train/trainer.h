// Trainer: one optimiser step after another on one device: forward, backward, clipping, AdamW.
#pragma once

#include <memory>
#include <optional>
#include <span>

#include "ssm/load/adapter.h"
#include "ssm/train/batches.h"
#include "ssm/train/parameters.h"
#include "ssm/train/schedule.h"

namespace ssm::train {

struct TrainerOptions {
  Schedule schedule;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  double clip = 1.0;              // of the global gradient norm; 0: none
  double average = 0;             // decay of an exponential moving average of the parameters; 0: none
  bool recompute_layers = false;  // keep a layer's input only and run it again in backward: less memory, a
                                  // third more time
  uint64_t seed = 0;              // of dropout
  std::function<bool(std::string_view name)> trained = [](std::string_view) { return true; };

  void check() const;  // throws Error naming the field that makes no sense
};

struct StepResult {
  double loss = 0;       // mean over the step's targets, before the update
  double grad_norm = 0;  // before clipping
  double lr = 0;
  int64_t inputs = 0, targets = 0;
};

struct Gradients {
  double loss = 0;  // mean over the targets
  double norm = 0;  // of all of them together
  int64_t inputs = 0, targets = 0;
  std::vector<TrainedParameter*> parameters;  // those that the loss depends on
  std::vector<Tensor> gradients;              // of each, valid until the next call
  Tensor scale;                               // [1], on the device: what clips them (gradient_norm.h)
};

class Trainer {
 public:
  // `model` is one made for `device` and `compute` (its Precision), with its parameters on the host; `vocab`:
  // ids below it are real. Steps count from `step`.
  Trainer(CausalLm& model, int64_t vocab, Device device, DType compute, TrainerOptions options);

  // The mean over the targets of all of `batches` (gradient accumulation) and its gradients. Throws Error
  // naming the step and the parameter where one is not finite. Parameters stay; the states that streams carry
  // move on.
  Gradients gradients(std::span<const Batch> batches);
  // One update by them; none where they are not finite.
  StepResult step(std::span<const Batch> batches);
  // The same in two parts: what a card is to do is enqueued, and the host is free until it waits for the end.
  void start(std::span<const Batch> batches);
  StepResult finish();
  // The sum of the targets' negative log-likelihoods in nats; sequences begin without a state. Nothing
  // changes.
  double evaluate(const Batch& batch);

  int64_t steps_done() const { return done_; }
  ParameterSet& parameters() { return parameters_; }
  const ParameterSet& parameters() const { return parameters_; }
  const TrainerOptions& options() const { return options_; }

  // For checkpoints, beside the parameters' values: AdamW's moments, averages, the states that streams carry.
  // f32.
  void for_each_moment(const std::function<void(const std::string& name, const Tensor& tensor)>& f);
  void carry_streams(int64_t streams);  // makes room for the states of so many
  void restored(int64_t steps_done);    // after values and moments were filled

 private:
  // Gradients, and what of them is still to be read from the device.
  struct Enqueued {
    Gradients of;
    std::vector<Tensor> losses;
    Tensor norm;
  };
  Enqueued enqueue(std::span<const Batch> batches);
  Gradients read(Enqueued enqueued);
  Tensor forward_backward(const Batch& batch, float scale);
  Tensor loss_of(const Batch& batch, const ModelState& state, float scale, bool gradient);
  ModelState begin_states(const Batch& batch);
  void keep_states(const Batch& batch, const ModelState& rows);
  void check_finite(double loss, double norm);

  CausalLm& model_;
  int64_t vocab_;
  Device device_;
  DType compute_;
  TrainerOptions options_;
  ParameterSet parameters_;
  Dropout dropout_;
  ModelState carried_;  // a row a stream
  int64_t carried_streams_ = 0;
  Arena arena_{Arena::kTight};
  std::optional<Enqueued> started_;
  int64_t done_ = 0;
};

}  // namespace ssm::train
