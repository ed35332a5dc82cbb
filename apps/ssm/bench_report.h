// What `ssm bench` found, and the limits it is held against.
//
//   prompt limit   GEMM rate / (2 x parameters in the layers' matrices), tokens a second
//   decode limit   batch / max(bytes a step / read bandwidth, operations a step / GEMM rate), where a step
//   reads
//                  every weight once, reads and writes each sequence's state, and reads what attention keeps
//                  of its text
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ssm/load/load_model.h"

namespace ssm::app {

// What a pass through a model costs.
struct ModelCost {
  int64_t layer_parameters = 0;  // of the matrices that every token is multiplied by
  int64_t head_parameters = 0;   // of the one that only a last token is
  size_t step_bytes = 0;         // of weights that a decode step reads
  size_t state_bytes = 0;        // of one sequence
  size_t kv_bytes = 0;           // of each of its tokens, which attention keeps
};

ModelCost cost_of(LoadedModel& model);

struct BenchReport {
  std::string model, weights;  // weights: "file" or "random"
  std::string stored_dtype, compute_dtype, state_dtype, device, card;
  int64_t parameters = 0, batch = 0, prompt_tokens = 0, new_tokens = 0, repeats = 0;
  int threads = 0;
  ModelCost cost;
  // Medians, in seconds. NaN: not measured.
  double load = 0, first_token = 0, decode = 0, total = 0;
  std::vector<int64_t> each_second;          // tokens that the last repeat gave in each whole second
  int64_t peak_memory = 0, card_memory = 0;  // of the process; of a card, 0 without one
  double read_bandwidth = 0, gemm_rate = 0;

  void print(bool json) const;
};

}  // namespace ssm::app
