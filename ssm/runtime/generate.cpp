#include "ssm/runtime/generate.h"

#include <exception>

namespace ssm {
namespace {

// What one run() hears. An exception of the caller's ends the run and is theirs again afterwards.
struct Run {
  const Generator::OnToken& on_token;
  std::vector<Generated> results;
  std::exception_ptr thrown;

  bool tell(size_t index, int32_t id, std::string_view text) {
    if (thrown) return false;
    if (!on_token) return true;
    try {
      return on_token(index, id, text);
    } catch (...) {
      thrown = std::current_exception();
      return false;
    }
  }
};

class SequenceListener : public Listener {
 public:
  SequenceListener(Run& run, size_t index) : run_(run), index_(index) {}

  bool on_token(const TokenEvent& event) override {
    Generated& result = run_.results[index_];
    result.text += event.text;
    if (event.id >= 0) result.ids.push_back(event.id);
    if (go_on_) go_on_ = run_.tell(index_, event.id, event.text);
    return go_on_;
  }
  void on_end(size_t, StopReason reason) override { run_.results[index_].reason = reason; }
  void on_finish(Finished finished) override {
    if (finished.error.empty() || run_.thrown) return;
    run_.thrown = std::make_exception_ptr(Error(fmt::format("sequence {}: {}", index_, finished.error)));
  }

 private:
  Run& run_;
  size_t index_;
  bool go_on_ = true;
};

}  // namespace

Generator::Generator(const LoadedModel& model, int64_t slots)
    : scheduler_(model, {.slots = slots, .prompts_first = true}) {}

size_t Generator::add(std::span<const int32_t> prompt) {
  slots_.push_back(scheduler_.texts().begin(prompt));
  return slots_.size() - 1;
}

size_t Generator::add(std::span<const int32_t> prompt, const std::filesystem::path& state) {
  slots_.push_back(scheduler_.texts().begin(state, prompt));
  return slots_.size() - 1;
}

size_t Generator::add(std::span<const int32_t> prompt, const ModelState& states, int64_t slot,
                      int64_t tokens) {
  slots_.push_back(scheduler_.texts().begin(states, slot, tokens, prompt));
  return slots_.size() - 1;
}

void Generator::copy_state(size_t index, const ModelState& to, int64_t slot) const {
  copy_slot(scheduler_.texts().states().state(), slots_.at(index), to, slot);
}

void Generator::clear() {
  for (const int32_t slot : slots_) scheduler_.texts().release(slot);
  slots_.clear();
}

void Generator::extend(size_t index, std::span<const int32_t> ids, bool without_last) {
  scheduler_.texts().extend(slots_.at(index), ids, without_last);
}

int64_t Generator::unread() const {
  int64_t tokens = 0;
  for (const int32_t slot : slots_) tokens += std::ssize(scheduler_.texts().pending(slot));
  return tokens;
}

std::vector<Generated> Generator::run(const GenerateOptions& options, const OnToken& on_token,
                                      const OnProgress& progress) {
  Run run{on_token, std::vector<Generated>(slots_.size()), {}};
  std::vector<Request> requests;
  for (size_t i = 0; i < slots_.size(); ++i) {
    Request request;
    request.slot = slots_[i];
    request.options = options;
    request.options.sampling.seed += i;
    request.listener = std::make_shared<SequenceListener>(run, i);
    requests.push_back(std::move(request));
  }
  scheduler_.submit(std::move(requests));
  const int64_t prompts = unread();
  bool reading = progress != nullptr;
  while (scheduler_.step()) {
    if (!reading) continue;
    const int64_t left = unread();
    reading = left > std::ssize(slots_);  // a text's last token is read with what is written
    if (reading) progress(prompts - left, prompts);
  }
  if (run.thrown) std::rethrow_exception(run.thrown);
  return std::move(run.results);
}

void Generator::save(size_t index, const std::filesystem::path& path) const {
  scheduler_.texts().save(slots_.at(index), path);
}

}  // namespace ssm
