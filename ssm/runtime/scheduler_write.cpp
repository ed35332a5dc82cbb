// The half of Scheduler that makes tokens out of hidden states and ends what has ended.
#include <algorithm>

#include "ssm/runtime/scheduler_parts.h"
#include "ssm/runtime/stepper.h"

namespace ssm {
namespace {

constexpr int64_t kLogitRows = 64;  // of the head at a time: V is large

}  // namespace

void Scheduler::score_prompt(Job& job, const Tensor& hidden) {
  const std::vector<int32_t>& prompt = job.request.prompt;
  for (int64_t first = 0; first < hidden.size(0); first += kLogitRows) {
    const int64_t rows = std::min(kLogitRows, hidden.size(0) - first);
    std::vector<int32_t> targets;
    for (int64_t i = 1; i <= rows; ++i) {
      const auto next = static_cast<size_t>(job.position + first + i);
      targets.push_back(next < prompt.size() ? prompt[next] : -1);
    }
    const Tensor logits = runner_.logits(hidden.slice(0, first, first + rows)).to(kCpu);
    std::vector<TokenScores> scores =
        token_scores(logits, targets, model_.usable_vocab(), job.request.top_logprobs);
    for (int64_t i = 0; i < rows; ++i) {
      if (job.request.listener)
        job.request.listener->on_prompt_score(job.position + first + i, job.next_scores);
      job.next_scores = std::move(scores[static_cast<size_t>(i)]);
    }
  }
}

// Every choice gets the prompt's state.
void Scheduler::prompt_done(Job& job) {
  for (size_t i = 1; i < job.choices.size(); ++i) texts_.copy(job.choices[0].slot, job.choices[i].slot);
  job.phase = Job::Phase::writing;
}

// Before the next step changes its first choice's slot.
void Scheduler::keep_prompt(Job& job) {
  if (std::exchange(job.keep_prompt, false))
    remember(job.request.prompt, job.choices[0].slot, job.last_hidden);
}

void Scheduler::remember(std::span<const int32_t> ids, int32_t slot, const Tensor& hidden) {
  if (ids.empty() || cache_.budget() < texts_.states().bytes_of(slot, options_.cache_dtype) ||
      cache_.contains(ids))
    return;
  PrefixCache::Entry entry;  // outlives the step
  {
    const ArenaScope reused(&cache_memory_);
    entry.state = texts_.states().copy_out(slot, options_.cache_dtype);
  }
  const ArenaScope heap(nullptr);
  if (hidden.defined()) entry.hidden = hidden.to(kCpu).clone();
  cache_.insert(ids, std::move(entry));
}

// Chooses the next token of every row.
void Scheduler::write(const std::vector<Row>& rows) {
  const int64_t count = std::ssize(rows);
  if (count == 0) return;
  const int64_t blocks = (count + kLogitRows - 1) / kLogitRows, size = (count + blocks - 1) / blocks;
  for (int64_t first = 0; first < count; first += size) {
    write_block(std::span(rows).subspan(static_cast<size_t>(first),
                                        static_cast<size_t>(std::min(size, count - first))));
  }
}

void Scheduler::write_block(std::span<const Row> rows) {
  const Tensor& one = rows[0].hidden;
  const Tensor hidden = Tensor::empty({std::ssize(rows), one.size(1)}, one.dtype(), one.device());
  for (size_t i = 0; i < rows.size(); ++i) {
    const Tensor& from = rows[i].hidden;
    copy_bytes(hidden.select(0, static_cast<int64_t>(i)).raw(), hidden.device(), from.raw(), from.device(),
               from.bytes());
  }
  Tensor logits = runner_.logits(hidden), scored = logits;
  const auto any = [&](auto of) {
    return std::any_of(rows.begin(), rows.end(), [&](const Row& row) { return of(*row.job); });
  };
  if (any([](const Job& job) { return job.needs_logits(); })) scored = logits.to(kCpu);
  if (any([](const Job& job) { return job.changes_logits(); })) {
    const Tensor changed = scored.clone();
    for (size_t i = 0; i < rows.size(); ++i) {
      adjust(rows[i], changed.select(0, static_cast<int64_t>(i)).values<float>());
    }
    logits = changed.to(logits.device());
  }
  const std::vector<int32_t> ids = draw(rows, logits);
  for (size_t i = 0; i < rows.size(); ++i) {
    const Request& request = rows[i].job->request;
    if (ids[i] < 0 || request.top_logprobs < 0) {
      accept(rows[i], ids[i], nullptr);
      continue;
    }
    const auto row = static_cast<int64_t>(i);
    const TokenScores scores = token_scores(scored.slice(0, row, row + 1), std::span(&ids[i], 1),
                                            model_.usable_vocab(), request.top_logprobs)[0];
    accept(rows[i], ids[i], &scores);
  }
}

void Scheduler::adjust(const Row& row, std::span<float> logits) const {
  const Request& r = row.job->request;
  for (const auto& [id, count] : row.choice->counts) {
    logits[static_cast<size_t>(id)] -= r.presence_penalty + r.frequency_penalty * static_cast<float>(count);
  }
  for (const auto& [id, bias] : r.logit_bias) logits[static_cast<size_t>(id)] += bias;
}

// The next ids; -1 for a row without one finite score.
std::vector<int32_t> Scheduler::draw(std::span<const Row> rows, const Tensor& logits) {
  std::vector<SamplingParams> params;
  std::vector<int32_t> slots;
  std::vector<int64_t> positions;
  for (const Row& row : rows) {
    params.push_back(row.job->request.options.sampling);
    params.back().seed += row.choice->index;
    slots.push_back(row.choice->slot);
    positions.push_back(texts_.tokens(row.choice->slot));
  }
  try {
    const Tensor ids =
        sample(logits, model_.usable_vocab(), params, texts_.seen(), slots, positions).to(kCpu);
    const auto values = ids.values<int32_t>();
    return {values.begin(), values.end()};
  } catch (const Error&) {  // of one row: the others go on
    if (rows.size() == 1) return {-1};
  }
  std::vector<int32_t> ids;
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto row = static_cast<int64_t>(i);
    ids.push_back(draw(rows.subspan(i, 1), logits.slice(0, row, row + 1))[0]);
  }
  return ids;
}

// The captured step of a card, where every text that is being written can take part: false if not.
#ifdef SSM_CUDA
bool Scheduler::steps_on_card(const std::vector<Piece>& plan) {
  std::vector<Row> rows;
  std::vector<Stepper::Input> inputs;
  for (const Piece& piece : plan) {
    if (piece.job->phase != Job::Phase::writing) continue;
    if (!stepper_ || piece.job->needs_logits()) return false;
    SamplingParams params = piece.job->request.options.sampling;
    params.seed += piece.choice->index;
    const int32_t slot = piece.choice->slot;
    inputs.push_back({texts_.pending(slot)[0], {params, slot, texts_.tokens(slot)}});
    rows.push_back({piece.job, piece.choice, {}});
  }
  if (rows.empty()) return false;
  const std::vector<int32_t> ids = stepper_->step(inputs);
  for (size_t i = 0; i < rows.size(); ++i) {
    texts_.was_read(rows[i].choice->slot, 1);
    rows[i].job->user->served += 1;
    accept(rows[i], ids[i], nullptr);
  }
  return true;
}
#else
bool Scheduler::steps_on_card(const std::vector<Piece>&) { return false; }
#endif

// Adds a chosen id to its text.
void Scheduler::accept(const Row& row, int32_t id, const TokenScores* scores) {
  Job& job = *row.job;
  Choice& choice = *row.choice;
  if (!choice.live) return;
  if (id < 0) return fail_job(job, "the model gave no finite score for the next token");
  const GenerateOptions& options = job.request.options;
  choice.ids.push_back(id);
  texts_.append(choice.slot, id);
  ++counts_.new_tokens;
  if (job.changes_logits()) ++choice.counts[id];
  const std::vector<int32_t>& ends = options.eos ? *options.eos : model_.eos;
  const bool eos = !options.ignore_eos && std::find(ends.begin(), ends.end(), id) != ends.end();
  std::string shown;
  if (choice.decoder && !eos) shown = choice.matcher.push(choice.decoder->push(id));
  Listener* listener = job.request.listener.get();
  const bool go_on = !listener || listener->on_token({choice.index, id, shown, scores});
  const bool full = options.max_new_tokens >= 0 && std::ssize(choice.ids) >= options.max_new_tokens;
  if (eos) return end(job, choice, StopReason::eos);
  if (choice.matcher.matched()) return end(job, choice, StopReason::stop);
  if (!go_on) return end(job, choice, StopReason::cancelled);
  if (full) return end(job, choice, StopReason::length);
}

void Scheduler::end(Job& job, Choice& choice, StopReason reason) {
  if (!choice.live) return;
  choice.live = false;
  Listener* listener = job.request.listener.get();
  if (choice.decoder && !choice.matcher.matched()) {
    std::string rest = choice.matcher.push(choice.decoder->finish());
    rest += choice.matcher.finish();
    if (listener && !rest.empty()) listener->on_token({choice.index, -1, rest, nullptr});
  }
  if (job.phase == Job::Phase::writing && job.uses_cache() && reason != StopReason::failed) {
    keep_prompt(job);
    std::vector<int32_t> ids = job.request.prompt;
    ids.insert(ids.end(), choice.ids.begin(), choice.ids.end());
    ids.resize(ids.size() - texts_.pending(choice.slot).size());
    remember(ids, choice.slot, {});
  }
  if (listener) listener->on_end(choice.index, reason);
  const bool more =
      std::any_of(job.choices.begin(), job.choices.end(), [](const Choice& c) { return c.live; });
  if (!more) finish(job, "");
}

void Scheduler::fail_job(Job& job, const std::string& error) {
  if (job.phase == Job::Phase::finished) return;
  for (Choice& choice : job.choices) {
    if (std::exchange(choice.live, false) && job.request.listener) {
      job.request.listener->on_end(choice.index, StopReason::failed);
    }
  }
  finish(job, error);
}

void Scheduler::finish(Job& job, std::string error) {
  job.phase = Job::Phase::finished;
  job.keep_prompt = false;
  Finished finished{.error = std::move(error), .text = {}, .embedding = {}};
  const Request& r = job.request;
  if (r.keep_text && finished.error.empty() && job.choices[0].slot >= 0) {
    finished.text = texts_.copy_out(job.choices[0].slot);
  }
  for (const double sum : job.hidden_sum) {
    finished.embedding.push_back(static_cast<float>(sum / static_cast<double>(job.position)));
  }
  for (const Choice& choice : job.choices) {
    if (r.slot < 0 && choice.slot >= 0) texts_.release(choice.slot);
  }
  if (r.listener) r.listener->on_finish(std::move(finished));
}

// Forgets what is finished.
void Scheduler::sweep() {
  const auto done = std::stable_partition(running_.begin(), running_.end(),
                                          [](const auto& job) { return job->phase != Job::Phase::finished; });
  if (done == running_.end()) return;
  {
    const std::lock_guard lock(mutex_);
    for (auto job = done; job != running_.end(); ++job) {
      outstanding_ -= (*job)->request.n;
      known_.erase((*job)->id);
      --(*job)->user->jobs;
    }
  }
  running_.erase(done, running_.end());
  std::erase_if(users_, [](const auto& user) { return user.second.jobs == 0; });
}

void Scheduler::publish() {
  counts_.waiting = waiting_;
  counts_.running = 0;
  for (const std::unique_ptr<Job>& job : running_) counts_.running += job->request.n;
  counts_.cache_entries = cache_.size();
  counts_.cache_bytes = cache_.bytes();
  const std::lock_guard lock(mutex_);
  published_ = counts_;
}

}  // namespace ssm
