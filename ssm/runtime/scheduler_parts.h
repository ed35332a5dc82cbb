// What the files of Scheduler share.
#pragma once

#include <unordered_map>

#include "ssm/runtime/scheduler.h"
#include "ssm/runtime/stop_matcher.h"

namespace ssm {

struct Scheduler::Choice {
  size_t index = 0;
  int32_t slot = -1;
  std::vector<int32_t> ids;
  std::unordered_map<int32_t, int> counts;  // of ids, where a penalty asks
  std::unique_ptr<text::StreamDecoder> decoder;
  StopMatcher matcher{{}};
  bool live = false;
};

struct Scheduler::Job {
  uint64_t id = 0;
  Request request;
  User* user = nullptr;
  std::vector<Choice> choices;
  enum class Phase { reading, ready, writing, finished } phase = Phase::reading;
  int64_t begin = 0;         // of the reading: the length of the prefix that was known
  int64_t position = 0;      // of the prompt, up to which it is read
  int64_t left = 0;          // of it to be read
  int64_t shared = 0;        // first ids that are also another text's
  Tensor last_hidden;        // [1, M] of the prompt's last token
  bool keep_prompt = false;  // its state is still to be kept, once the first token is told
  TokenScores next_scores;   // of the prompt's next token, while the prompt is scored
  int64_t cut = 0;           // the prompt's next position whose state is kept
  std::vector<double> hidden_sum;

  bool writes() const { return request.options.max_new_tokens != 0 && !request.embed; }
  bool reads_all() const { return writes() || request.embed || request.score_prompt; }
  bool begins_empty() const { return request.slot < 0 && !request.from; }
  // A text whose every id is known, and whose prompt need not be seen token by token.
  bool uses_cache() const { return begins_empty() && !request.embed && !request.score_prompt; }
  // A job that looks at scores or changes them.
  bool needs_logits() const { return request.top_logprobs >= 0 || changes_logits(); }
  bool changes_logits() const {
    return request.presence_penalty != 0 || request.frequency_penalty != 0 || !request.logit_bias.empty();
  }
};

struct Scheduler::User {
  std::deque<std::unique_ptr<Job>> waiting;
  double served = 0;
  int64_t jobs = 0;
};

struct Scheduler::Piece {
  Job* job;
  Choice* choice;
  int64_t length;
};

struct Scheduler::Row {
  Job* job;
  Choice* choice;
  Tensor hidden;  // [1, M]
};

}  // namespace ssm
