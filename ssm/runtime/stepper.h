// Stepper: one decode step of a batch on a card, sampling included, captured once for each batch size and
// replayed with one launch. Batches of 1, 2, 4, 8, ... have a graph; another one is filled up with rows of
// the pool's scratch slot. Slots, ids and sampling rows are device memory, so a changing batch copies no
// state, and a batch that just goes on copies nothing at all: the ids a step chose are the next one's input.
#pragma once

#ifdef SSM_CUDA

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "ssm/core/graph.h"
#include "ssm/load/load_model.h"
#include "ssm/ops/sampling/sampling.h"
#include "ssm/runtime/state_pool.h"

namespace ssm {

class Stepper {
 public:
  // `seen` [slots + 1, V] is the card's, as sample() takes it; all outlive the stepper.
  Stepper(const LoadedModel& model, StatePool& pool, const Tensor& seen);
  ~Stepper();

  struct Input {
    int32_t id;        // the last one, not read yet
    SamplingRow next;  // how the one after it is chosen, and the slot
    bool operator==(const Input&) const = default;
  };

  // Reads each row's id and returns the next ones; -1 for a row without one finite score. The pool has room
  // for a token more of each slot.
  std::vector<int32_t> step(std::span<const Input> inputs);

 private:
  struct Batch;

  Batch& batch_for(int64_t size);
  void enqueue(const Batch& batch) const;
  void upload(std::span<const Input> inputs, Batch& batch) const;

  const LoadedModel& model_;
  StatePool& pool_;
  Tensor seen_;
  mutable Arena arena_;  // activations of the graphs, which never run at the same time
  std::map<int64_t, std::unique_ptr<Batch>> batches_;
};

}  // namespace ssm

#endif
