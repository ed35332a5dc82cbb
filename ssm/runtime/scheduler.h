// Scheduler: continuous batching. Requests join and leave the batch at any token; every step reads the next
// token of each text that is being written, and pieces of prompts beside them.
//
// A prompt is cut at multiples of kSsdChunk from where its reading began, so on a CPU in f32 what a request
// gets does not depend on its neighbours, nor on when it came: bit for bit. A prompt that extends a text of
// the prefix cache begins there: the same bits where that text was cut at such a multiple, or the model is a
// Mamba-1; elsewhere the bound of docs/numerics.md for any split.
//
// Attention's memory: a request is admitted when it and those that run have room for their prompts and for
// all they may write, or when nothing runs. One that passes the bound all the same fails alone, with an error
// that says so.
//
// Fairness: a user's cost is the tokens that were read and written for them. Who has had least is admitted
// first and read first; each prompt that waits gets a share of a step, at least one chunk. While texts are
// being written, a step reads so much of prompts that it takes about `stall_seconds`.
//
// submit(), cancel() and cancel_all() may be called by any thread, everything else by the one that calls
// step().
#pragma once

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <vector>

#include "ssm/runtime/prefix_cache.h"
#include "ssm/runtime/request.h"
#include "ssm/runtime/sequence_runner.h"
#include "ssm/runtime/text_pool.h"
#include "ssm/runtime/token_scores.h"

namespace ssm {

class Stepper;  // of a build with CUDA

struct TokenEvent {
  size_t choice;
  int32_t id;             // -1: the rest of the text, at its end
  std::string_view text;  // what can be shown now: never half a character, nor what may begin a stop string
  const TokenScores* scores;  // null unless asked for
};

struct Finished {
  std::string error;             // empty: none
  std::optional<TextCopy> text;  // where it was to be kept
  std::vector<float> embedding;  // where it was asked for
};

// Hears of one request, on the thread of step(); must not throw.
class Listener {
 public:
  virtual ~Listener() = default;
  virtual void on_start(int64_t /*cached_tokens*/) {}
  // Of the prompt's token at `position`, in order; the logprob of a text's first token is NaN.
  virtual void on_prompt_score(int64_t /*position*/, const TokenScores& /*scores*/) {}
  virtual bool on_token(const TokenEvent& /*event*/) { return true; }  // false: that choice ends
  virtual void on_end(size_t /*choice*/, StopReason /*reason*/) {}
  virtual void on_finish(Finished /*finished*/) {}  // once, the last call
};

struct Request {
  std::vector<int32_t> prompt;
  std::shared_ptr<const TextCopy> from;  // a text that the prompt goes on from
  int32_t slot = -1;                     // or one of texts(), which stays there when the request ends
  GenerateOptions options;               // choice i draws from seed + i
  int64_t n = 1;                         // choices of one prompt
  float presence_penalty = 0;            // taken from the score of an id that was written already,
  float frequency_penalty = 0;           // and this as often as it was
  std::vector<std::pair<int32_t, float>> logit_bias;  // added to an id's score
  int64_t top_logprobs = -1;   // so many beside the token's own; -1: no scores. They are the model's, before
                               // penalties and temperature
  bool score_prompt = false;   // with top_logprobs; reads the whole prompt
  bool embed = false;          // the mean of the prompt's last hidden states; nothing is written
  bool keep_text = false;      // give the text back at the end; n is 1
  std::vector<int64_t> marks;  // lengths of the prompt after which others may go on differently
  std::string user;            // whom fairness counts it for
  std::shared_ptr<Listener> listener;  // may be null
};

// Too many requests wait already.
class Busy : public Error {
 public:
  using Error::Error;
};

struct SchedulerOptions {
  int64_t slots = 1;               // choices that are read and written at the same time
  int64_t max_waiting = -1;        // choices that may wait beyond those; -1: any number
  size_t cache_bytes = 0;          // of the prefix cache
  DType cache_dtype = DType::f32;  // of its states: 16 bits hold twice as many, outside the bitwise promise
  double stall_seconds = 0.1;
  bool prompts_first = false;  // read all prompts before any text is written: least work for a fixed batch
};

struct SchedulerStats {
  int64_t waiting = 0, running = 0;  // choices
  int64_t steps = 0, prompt_tokens = 0, cached_tokens = 0, new_tokens = 0, requests = 0, cache_hits = 0;
  int64_t cache_entries = 0;
  size_t cache_bytes = 0;
};

class Scheduler {
 public:
  Scheduler(const LoadedModel& model, const SchedulerOptions& options);
  ~Scheduler();

  // All of them or none. Throw Error for what makes no sense, Busy where too many wait.
  std::vector<uint64_t> submit(std::vector<Request> requests);
  uint64_t submit(Request request);
  void cancel(uint64_t id);  // heard at the next step; unknown ids are finished ones
  void cancel_all();

  bool step();                      // false: nothing to do
  void wait(std::stop_token stop);  // until there is something to do

  TextPool& texts() { return texts_; }
  const TextPool& texts() const { return texts_; }
  SchedulerStats stats() const;  // by any thread

 private:
  struct Choice;
  struct Job;
  struct User;
  struct Piece;
  struct Row;

  void check_request(const Request& request) const;
  void take_inbox();
  void admit();
  void make_choices(Job& job) const;
  void start(Job& job);
  int32_t begin_known(Job& job);
  std::vector<Piece> make_plan();
  int64_t next_cut(const Job& job) const;
  int64_t prompt_room(int64_t writing) const;
  size_t bytes_to_come(const Job& job) const;
  bool waits_for_memory(const Job& job) const;
  void reserve(std::vector<Piece>& plan);
  void read(const std::vector<Piece>& plan);
  void heed_prompt(Job& job, const Tensor& hidden);
  void score_prompt(Job& job, const Tensor& hidden);
  void prompt_done(Job& job);
  void keep_prompt(Job& job);
  void remember(std::span<const int32_t> ids, int32_t slot, const Tensor& hidden);
  void write(const std::vector<Row>& rows);
  void write_block(std::span<const Row> rows);
  void adjust(const Row& row, std::span<float> logits) const;
  std::vector<int32_t> draw(std::span<const Row> rows, const Tensor& logits);
  bool steps_on_card(const std::vector<Piece>& plan);
  void accept(const Row& row, int32_t id, const TokenScores* scores);
  void end(Job& job, Choice& choice, StopReason reason);
  void fail_job(Job& job, const std::string& error);
  void finish(Job& job, std::string error);
  void sweep();
  void publish();

  const LoadedModel& model_;
  const SchedulerOptions options_;
  TextPool texts_;
  SequenceRunner runner_;
  Arena cache_memory_;  // of its states: what one left the next takes
  PrefixCache cache_;
#ifdef SSM_CUDA
  std::unique_ptr<Stepper> stepper_;  // of a model on a card
#endif
  std::map<std::string, User> users_;
  std::vector<std::unique_ptr<Job>> running_;  // in the order of their last piece
  int64_t waiting_ = 0;                        // choices
  int64_t room_;                               // of prompts beside texts that are being written
  SchedulerStats counts_;

  mutable std::mutex mutex_;  // of what follows
  std::condition_variable_any wake_;
  std::vector<std::unique_ptr<Job>> inbox_;
  std::set<uint64_t> cancelled_, known_;  // known: submitted and not finished
  uint64_t next_id_ = 1;
  int64_t outstanding_ = 0;  // choices
  SchedulerStats published_;
};

}  // namespace ssm
