#include "ssm/runtime/scheduler.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <limits>

#include "ssm/ops/ssd_scan/ssd_scan.h"
#include "ssm/runtime/scheduler_parts.h"
#include "ssm/runtime/stepper.h"

namespace ssm {
namespace {

constexpr int64_t kKeepEvery = 512;  // tokens of a prompt after which its state is kept
static_assert(kKeepEvery % kSsdChunk == 0);

int64_t whole_chunks(int64_t tokens) { return tokens / kSsdChunk * kSsdChunk; }

}  // namespace

std::string_view name_of(StopReason reason) {
  switch (reason) {
    case StopReason::eos:
      return "eos";
    case StopReason::stop:
      return "stop";
    case StopReason::length:
      return "length";
    case StopReason::cancelled:
      return "cancelled";
    case StopReason::failed:
      return "failed";
  }
  return "";
}

void check(const GenerateOptions& options, bool has_tokenizer) {
  check(options.sampling);
  for (const std::string& stop : options.stop) SSM_CHECK(!stop.empty(), "a stop string is empty");
  SSM_CHECK(options.stop.empty() || has_tokenizer, "stop strings need a tokenizer, and this model has none");
}

Scheduler::Scheduler(const LoadedModel& model, const SchedulerOptions& options)
    : model_(model),
      options_(options),
      texts_(model, options.slots),
      runner_(*model.model, texts_.states()),
      cache_(options.cache_bytes),
      room_(std::min(2 * kSsdChunk, runner_.piece_tokens())) {
#ifdef SSM_CUDA
  if (model.device.is_cuda()) stepper_ = std::make_unique<Stepper>(model, texts_.states(), texts_.seen());
#endif
}

Scheduler::~Scheduler() = default;

void Scheduler::check_request(const Request& r) const {
  check(r.options, model_.tokenizer != nullptr);
  SSM_CHECK(r.n >= 1 && r.n <= options_.slots, "n is {}, this server runs 1 to {} at a time", r.n,
            options_.slots);
  SSM_CHECK(r.n == 1 || (r.slot < 0 && !r.keep_text), "n is {} where a text is kept, expected 1", r.n);
  SSM_CHECK(!r.prompt.empty() || r.slot >= 0 || r.from, "the prompt is empty: nothing to continue");
  SSM_CHECK(!r.score_prompt || (r.slot < 0 && !r.from), "only a text's beginning can be scored");
  SSM_CHECK(std::isfinite(r.presence_penalty) && std::isfinite(r.frequency_penalty),
            "a penalty is not finite");
  texts_.check_ids(r.prompt);
  for (const auto& [id, bias] : r.logit_bias) {
    SSM_CHECK(id >= 0 && id < model_.usable_vocab() && std::isfinite(bias),
              "logit_bias of token {} is outside the vocabulary of {} or not finite", id,
              model_.usable_vocab());
  }
  if (!r.score_prompt) return;
  for (size_t i = 0; i < r.prompt.size(); ++i) {
    SSM_CHECK(r.prompt[i] < model_.usable_vocab(), "token {} at position {} is outside the vocabulary of {}",
              r.prompt[i], i, model_.usable_vocab());
  }
}

std::vector<uint64_t> Scheduler::submit(std::vector<Request> requests) {
  int64_t choices = 0;
  for (const Request& r : requests) {
    check_request(r);
    choices += r.n;
  }
  std::vector<uint64_t> ids;
  {
    const std::lock_guard lock(mutex_);
    if (options_.max_waiting >= 0 && outstanding_ + choices > options_.slots + options_.max_waiting) {
      throw Busy(fmt::format("{} texts are being written or wait, and {} more would be too many",
                             outstanding_, choices));
    }
    outstanding_ += choices;
    for (Request& r : requests) {
      auto job = std::make_unique<Job>();
      job->id = next_id_++;
      job->request = std::move(r);
      ids.push_back(job->id);
      known_.insert(job->id);
      inbox_.push_back(std::move(job));
    }
  }
  wake_.notify_one();
  return ids;
}

uint64_t Scheduler::submit(Request request) {
  std::vector<Request> one;
  one.push_back(std::move(request));
  return submit(std::move(one))[0];
}

void Scheduler::cancel(uint64_t id) {
  const std::lock_guard lock(mutex_);
  if (known_.contains(id)) cancelled_.insert(id);
}

void Scheduler::cancel_all() {
  const std::lock_guard lock(mutex_);
  cancelled_ = known_;
}

void Scheduler::wait(std::stop_token stop) {
  std::unique_lock lock(mutex_);
  wake_.wait(lock, std::move(stop), [&] { return outstanding_ > 0; });
}

SchedulerStats Scheduler::stats() const {
  const std::lock_guard lock(mutex_);
  return published_;
}

bool Scheduler::step() {
  take_inbox();
  sweep();
  admit();
  sweep();
  if (running_.empty()) {
    publish();
    return waiting_ > 0;
  }
  const auto start = std::chrono::steady_clock::now();
  std::vector<Piece> plan = make_plan();
  reserve(plan);
  bool reads = false, writes = false;
  for (const Piece& piece : plan) (piece.job->phase == Job::Phase::writing ? writes : reads) = true;
  try {
    read(plan);
  } catch (const std::exception& e) {  // a failed op, or no memory for it
    for (const Piece& piece : plan) fail_job(*piece.job, e.what());
    for (const std::unique_ptr<Job>& job : running_) {
      if (job->phase == Job::Phase::ready) fail_job(*job, e.what());
    }
  }
  if (reads && writes) {
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    if (took.count() > options_.stall_seconds) room_ = std::max(kSsdChunk, whole_chunks(room_ / 2));
    if (took.count() < options_.stall_seconds / 2) room_ = std::min(runner_.piece_tokens(), 2 * room_);
  }
  ++counts_.steps;
  sweep();
  publish();
  return true;
}

void Scheduler::take_inbox() {
  std::vector<std::unique_ptr<Job>> arrived;
  std::set<uint64_t> cancelled;
  {
    const std::lock_guard lock(mutex_);
    arrived.swap(inbox_);
    cancelled.swap(cancelled_);
  }
  for (std::unique_ptr<Job>& job : arrived) {
    double least = std::numeric_limits<double>::infinity();
    for (const auto& [name, other] : users_) least = std::min(least, other.served);
    const auto [place, is_new] = users_.try_emplace(job->request.user);
    User& user = place->second;
    if (is_new && users_.size() > 1) user.served = least;  // what came before does not count
    job->user = &user;
    ++user.jobs;
    ++counts_.requests;
    waiting_ += job->request.n;
    user.waiting.push_back(std::move(job));
  }
  if (cancelled.empty()) return;
  for (const std::unique_ptr<Job>& job : running_) {
    if (!cancelled.contains(job->id)) continue;
    for (Choice& choice : job->choices) end(*job, choice, StopReason::cancelled);
  }
  for (auto& [name, user] : users_) {
    for (std::unique_ptr<Job>& job : user.waiting) {
      if (!cancelled.contains(job->id)) continue;
      waiting_ -= job->request.n;
      make_choices(*job);
      for (Choice& choice : job->choices) end(*job, choice, StopReason::cancelled);
      running_.push_back(std::move(job));  // to be swept
    }
    std::erase(user.waiting, nullptr);
  }
}

// Whoever has had least comes first; nobody overtakes a request that waits for several slots.
void Scheduler::admit() {
  while (waiting_ > 0) {
    User* next = nullptr;
    for (auto& [name, user] : users_) {
      if (!user.waiting.empty() && (!next || user.served < next->served)) next = &user;
    }
    std::unique_ptr<Job>& first = next->waiting.front();
    const int64_t needed = first->request.slot >= 0 ? 0 : first->request.n;
    if (needed > texts_.states().available() || waits_for_memory(*first)) return;
    waiting_ -= first->request.n;
    running_.push_back(std::move(first));
    next->waiting.pop_front();
    Job& job = *running_.back();
    try {
      start(job);
    } catch (const std::exception& e) {
      fail_job(job, e.what());
    }
  }
}

// What attention will keep of a job's tokens that are not read yet, about.
size_t Scheduler::bytes_to_come(const Job& job) const {
  const StatePool& states = texts_.states();
  const Request& r = job.request;
  int64_t tokens = 0, texts = r.n;
  if (job.choices.empty()) {
    tokens = std::ssize(r.prompt) + (r.from ? r.from->note.tokens : 0);
    tokens += r.n * std::max<int64_t>(0, r.options.max_new_tokens);
  } else {
    tokens = job.left;
    texts = 0;
    for (const Choice& choice : job.choices) {
      if (!choice.live) continue;
      tokens += std::max<int64_t>(0, r.options.max_new_tokens - std::ssize(choice.ids));
      ++texts;
    }
  }
  return states.bytes_per_token() *
         static_cast<size_t>(tokens + texts * KvCache::kPageTokens);  // the last page of each is not full
}

bool Scheduler::waits_for_memory(const Job& job) const {
  if (running_.empty() || texts_.states().bytes_per_token() == 0) return false;
  size_t bytes = job.request.slot >= 0 ? 0 : bytes_to_come(job);
  for (const std::unique_ptr<Job>& other : running_) bytes += bytes_to_come(*other);
  return bytes > 0 && !texts_.states().has_room(bytes);
}

// Memory for what attention will keep of the plan's tokens. A job that finds none fails, and the others go
// on.
void Scheduler::reserve(std::vector<Piece>& plan) {
  for (const Piece& piece : plan) {
    try {
      if (piece.job->phase != Job::Phase::finished) texts_.states().reserve(piece.choice->slot, piece.length);
    } catch (const Error& e) {
      fail_job(*piece.job, e.what());
    }
  }
  std::erase_if(plan, [](const Piece& piece) { return piece.job->phase == Job::Phase::finished; });
}

void Scheduler::make_choices(Job& job) const {
  job.choices.resize(static_cast<size_t>(job.request.n));
  for (size_t i = 0; i < job.choices.size(); ++i) {
    Choice& choice = job.choices[i];
    choice.index = i;
    choice.matcher = StopMatcher(job.request.options.stop);
    if (model_.tokenizer) choice.decoder = std::make_unique<text::StreamDecoder>(*model_.tokenizer);
    choice.live = true;
  }
}

// Gives an admitted job its slots and its text.
void Scheduler::start(Job& job) {
  const Request& r = job.request;
  make_choices(job);
  for (Choice& choice : job.choices) {
    if (r.slot >= 0) {
      choice.slot = r.slot;
      if (!r.prompt.empty()) texts_.extend(r.slot, r.prompt);
    } else if (r.from) {
      choice.slot = texts_.begin(*r.from, r.prompt);
    } else {
      choice.slot = choice.index == 0 && job.uses_cache() ? begin_known(job) : texts_.begin(r.prompt);
    }
  }
  job.next_scores.logprob = std::numeric_limits<float>::quiet_NaN();
  job.left = std::ssize(texts_.pending(job.choices[0].slot)) - (job.reads_all() ? 0 : 1);
  counts_.cached_tokens += job.begin;
  counts_.prompt_tokens += std::ssize(r.prompt);
  if (job.begin > 0) ++counts_.cache_hits;
  if (r.listener) r.listener->on_start(job.begin);
  if (job.left == 0 && !job.last_hidden.defined()) finish(job, "");
}

// The slot of a text that begins where the prefix cache knows it.
int32_t Scheduler::begin_known(Job& job) {
  const Request& r = job.request;
  // Without a token to write the last one is not read: a state before it is needed.
  const auto ids = std::span<const int32_t>(r.prompt).first(r.prompt.size() - (job.writes() ? 0 : 1));
  const PrefixCache::Match match = cache_.find(ids);
  job.shared = match.shared;
  if (match.length == 0) return texts_.begin(r.prompt);
  const int32_t slot = texts_.begin(r.prompt, match.entry.state, options_.cache_dtype, match.length);
  job.begin = job.position = match.length;
  if (match.length == std::ssize(r.prompt)) {
    job.last_hidden = match.entry.hidden.to(model_.device);
    job.phase = Job::Phase::ready;
  }
  return slot;
}

int64_t Scheduler::prompt_room(int64_t writing) const {
  return writing == 0 || options_.prompts_first ? runner_.piece_tokens() : room_;
}

// The next position of the prompt at which its state is worth keeping.
int64_t Scheduler::next_cut(const Job& job) const {
  // Ever farther apart, so that a long prompt does not drive everything else out.
  const int64_t every = std::max<int64_t>(
      kKeepEvery, static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(job.position / 8))));
  const int64_t since = job.position - job.begin;
  int64_t cut = job.begin + (since / every + 1) * every;
  // What attention keeps grows with the text: only what was asked for.
  if (texts_.states().bytes_per_token() > 0) cut = std::numeric_limits<int64_t>::max();
  const auto consider = [&](int64_t length) {
    const int64_t at = job.begin + whole_chunks(length - job.begin);
    if (length > job.begin && at > job.position) cut = std::min(cut, at);
  };
  consider(job.shared);
  for (const int64_t mark : job.request.marks) consider(mark);
  return cut;
}

// What the next step reads: a token of every text that is being written, and pieces of prompts.
std::vector<Scheduler::Piece> Scheduler::make_plan() {
  std::vector<Piece> plan;
  std::vector<Job*> readers;
  for (const std::unique_ptr<Job>& job : running_) {
    if (job->phase == Job::Phase::reading) readers.push_back(job.get());
  }
  if (readers.empty() || !options_.prompts_first) {
    for (const std::unique_ptr<Job>& job : running_) {
      if (job->phase != Job::Phase::writing) continue;
      for (Choice& choice : job->choices) {
        if (choice.live) plan.push_back({job.get(), &choice, 1});
      }
    }
  }
  std::stable_sort(readers.begin(), readers.end(),
                   [](const Job* a, const Job* b) { return a->user->served < b->user->served; });
  int64_t room = prompt_room(std::ssize(plan));
  std::set<Job*> read;
  for (size_t i = 0; i < readers.size() && room > 0; ++i) {
    Job& job = *readers[i];
    const int64_t share =
        std::min(room, std::max(kSsdChunk, whole_chunks(room / static_cast<int64_t>(readers.size() - i))));
    int64_t take = job.left <= share ? job.left : whole_chunks(share);
    if (job.uses_cache() && options_.cache_bytes > 0) {
      job.cut = next_cut(job);
      take = std::min(take, job.cut - job.position);
    }
    if (take == 0) break;
    plan.push_back({&job, &job.choices[0], take});
    room -= take;
    read.insert(&job);
  }
  std::stable_partition(running_.begin(), running_.end(),
                        [&](const std::unique_ptr<Job>& job) { return !read.contains(job.get()); });
  return plan;
}

void Scheduler::read(const std::vector<Piece>& plan) {
  std::vector<const Piece*> pieces, prompts;
  for (const Piece& piece : plan) {
    pieces.push_back(&piece);
    if (piece.job->phase == Job::Phase::reading) prompts.push_back(&piece);
  }
  if (steps_on_card(plan)) pieces = std::move(prompts);  // a job that was being written may have ended in it
  std::vector<SequenceRunner::Input> inputs;
  std::vector<Row> rows;
  for (const Piece* piece : pieces) {
    const auto ids = texts_.pending(piece->choice->slot).first(static_cast<size_t>(piece->length));
    inputs.push_back({piece->choice->slot, ids});
  }
  const Tensor hidden = inputs.empty() ? Tensor() : runner_.hidden(inputs);
  int64_t row = 0;
  for (const Piece* piece : pieces) {
    Job& job = *piece->job;
    const Tensor own = hidden.slice(0, row, row + piece->length);
    row += piece->length;
    texts_.was_read(piece->choice->slot, piece->length);
    job.user->served += static_cast<double>(piece->length);
    if (job.phase == Job::Phase::writing) {
      rows.push_back({&job, piece->choice, own});
    } else {
      heed_prompt(job, own);
    }
  }
  const bool wait = options_.prompts_first &&
                    std::any_of(running_.begin(), running_.end(),
                                [](const auto& job) { return job->phase == Job::Phase::reading; });
  for (const std::unique_ptr<Job>& job : running_) {
    if (job->phase != Job::Phase::ready || wait) continue;
    try {
      prompt_done(*job);
    } catch (const Error& e) {  // no memory for its choices
      fail_job(*job, e.what());
      continue;
    }
    for (Choice& choice : job->choices) rows.push_back({job.get(), &choice, job->last_hidden});
  }
  write(rows);
  for (const Row& written : rows) keep_prompt(*written.job);
}

// A piece of a prompt was read, with these hidden states [T, M].
void Scheduler::heed_prompt(Job& job, const Tensor& hidden) {
  const int64_t length = hidden.size(0);
  if (job.request.score_prompt && job.request.top_logprobs >= 0) score_prompt(job, hidden);
  if (job.request.embed) {
    const Tensor values = hidden.to(kCpu).to(DType::f32);
    job.hidden_sum.resize(static_cast<size_t>(values.size(1)));
    for (int64_t t = 0; t < length; ++t) {
      const Tensor token = values.select(0, t);
      for (size_t i = 0; i < job.hidden_sum.size(); ++i) {
        job.hidden_sum[i] += static_cast<double>(token.data<float>()[i]);
      }
    }
  }
  job.position += length;
  job.left -= length;
  const Tensor last = hidden.slice(0, length - 1, length);
  const bool first_token_follows = job.left == 0 && job.writes();
  if (job.uses_cache() && !first_token_follows && (job.left == 0 || job.position == job.cut)) {
    remember(std::span(job.request.prompt).first(static_cast<size_t>(job.position)), job.choices[0].slot,
             last);
  }
  if (job.left > 0) return;
  if (!job.writes()) {
    finish(job, "");
    return;
  }
  const ArenaScope heap(nullptr);
  job.last_hidden = last.clone();
  job.keep_prompt = job.uses_cache();
  job.phase = Job::Phase::ready;
}

}  // namespace ssm
