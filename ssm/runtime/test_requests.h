// Requests for the tests of Scheduler, and what came of them.
#pragma once

#include <filesystem>
#include <limits>

#include "ssm/core/rng.h"
#include "ssm/runtime/scheduler.h"

namespace ssm::test {

inline LoadedModel golden_model(const std::string& name) {
  return load_model(std::filesystem::path(SSM_SOURCE_DIR) / "tests/goldens/models" / name,
                    {.compute = DType::f32, .tokenizer = {}});
}

// Everything a listener hears.
struct Heard : Listener {
  std::vector<std::vector<int32_t>> ids;     // by choice
  std::vector<std::vector<float>> logprobs;  // of those
  std::vector<std::string> texts;
  std::vector<StopReason> reasons;
  std::vector<float> prompt_logprobs;
  std::vector<int32_t> prompt_best;  // the best token at each position, by those before it
  std::vector<float> prompt_best_logprobs;
  int64_t cached = -1;
  int finishes = 0;
  Finished finished;
  int64_t stop_after = -1;  // ids

  explicit Heard(size_t n = 1) : ids(n), logprobs(n), texts(n), reasons(n, StopReason::failed) {}

  void on_start(int64_t cached_tokens) override { cached = cached_tokens; }
  void on_prompt_score(int64_t position, const TokenScores& scores) override {
    if (position != std::ssize(prompt_logprobs)) return;  // noticed by its length
    prompt_logprobs.push_back(scores.logprob);
    prompt_best.push_back(scores.best.empty() ? -1 : scores.best[0].id);
    prompt_best_logprobs.push_back(scores.best.empty() ? std::numeric_limits<float>::quiet_NaN()
                                                       : scores.best[0].logprob);
  }
  bool on_token(const TokenEvent& event) override {
    if (event.id >= 0) ids[event.choice].push_back(event.id);
    if (event.scores) logprobs[event.choice].push_back(event.scores->logprob);
    texts[event.choice] += event.text;
    return stop_after < 0 || std::ssize(ids[event.choice]) < stop_after;
  }
  void on_end(size_t choice, StopReason reason) override { reasons[choice] = reason; }
  void on_finish(Finished f) override {
    ++finishes;
    finished = std::move(f);
  }
};

inline std::vector<int32_t> random_ids(const LoadedModel& model, int64_t length, Rng& rng) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < length; ++i) ids.push_back(static_cast<int32_t>(rng.below(model.usable_vocab())));
  return ids;
}

inline Request request_of(std::vector<int32_t> prompt, int64_t new_tokens, float temperature = 0,
                          uint64_t seed = 0) {
  Request request;
  request.prompt = std::move(prompt);
  request.options = {.sampling = {.temperature = temperature, .seed = seed},
                     .max_new_tokens = new_tokens,
                     .stop = {},
                     .ignore_eos = true};
  return request;
}

inline std::shared_ptr<Heard> submit(Scheduler& scheduler, Request request) {
  auto heard = std::make_shared<Heard>(static_cast<size_t>(request.n));
  request.listener = heard;
  scheduler.submit(std::move(request));
  return heard;
}

inline void run(Scheduler& scheduler) {
  while (scheduler.step()) {
  }
}

}  // namespace ssm::test
