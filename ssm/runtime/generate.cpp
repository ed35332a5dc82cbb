#include "ssm/runtime/generate.h"

#include <algorithm>

#include "ssm/runtime/stepper.h"
#include "ssm/runtime/stop_matcher.h"

namespace ssm {

struct Generator::Sequence {
  size_t index = 0;
  int32_t slot = 0;
  std::vector<int32_t> pending;  // of the text, not read into the state yet
  int64_t tokens = 0;            // of the text, pending ones included
  Generated out;
  std::unique_ptr<text::StreamDecoder> decoder;
  StopMatcher matcher{{}};
};

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
  }
  return "";
}

Generator::Generator(const LoadedModel& model, int64_t slots)
    : model_(model),
      pool_(*model.model, slots, model.state),
      runner_(*model.model, pool_),
      seen_(Tensor::zeros({pool_.rows(), model.model->vocab_size()}, DType::u8, model.device)) {
#ifdef SSM_CUDA
  if (model.device.is_cuda()) stepper_ = std::make_unique<Stepper>(model, pool_, seen_);
#endif
}

Generator::~Generator() = default;

size_t Generator::add(std::span<const int32_t> prompt) {
  SSM_CHECK(!prompt.empty(), "the prompt is empty: nothing to continue");
  check_ids(prompt);
  return start(pool_.acquire(), prompt).index;
}

// A sequence in an acquired slot that has `pending` to read.
Generator::Sequence& Generator::start(int32_t slot, std::span<const int32_t> pending) {
  auto sequence = std::make_unique<Sequence>();
  sequence->index = sequences_.size();
  sequence->slot = slot;
  const Tensor seen = seen_.select(0, slot);
  zero_bytes(seen.raw(), seen.device(), seen.bytes());  // of a sequence that had the slot before
  mark_seen(slot, pending);
  sequence->pending.assign(pending.begin(), pending.end());
  sequence->tokens = static_cast<int64_t>(pending.size());
  sequences_.push_back(std::move(sequence));
  return *sequences_.back();
}

void Generator::clear() {
  for (const auto& sequence : sequences_) pool_.release(sequence->slot);
  sequences_.clear();
}

void Generator::check_ids(std::span<const int32_t> ids) const {
  const int64_t vocab = model_.model->vocab_size();
  for (size_t i = 0; i < ids.size(); ++i) {
    SSM_CHECK(ids[i] >= 0 && ids[i] < vocab, "token {} at position {} is outside the vocabulary of {}",
              ids[i], i, vocab);
  }
}

void Generator::extend(size_t index, std::span<const int32_t> ids, bool without_last) {
  Sequence& sequence = *sequences_.at(index);
  const size_t dropped = without_last ? 1 : 0;
  SSM_CHECK(sequence.pending.size() - dropped + ids.size() > 0,
            "the text of sequence {} would have no last token", index);
  check_ids(ids);
  sequence.pending.resize(sequence.pending.size() - dropped);
  sequence.pending.insert(sequence.pending.end(), ids.begin(), ids.end());
  sequence.tokens += static_cast<int64_t>(ids.size()) - static_cast<int64_t>(dropped);
  mark_seen(sequence.slot, ids);
}

void Generator::mark_seen(int32_t slot, std::span<const int32_t> ids) {
  const Tensor row = seen_.select(0, slot), marks = row.to(kCpu);
  for (const int32_t id : ids) marks.data<uint8_t>()[id] = 1;
  if (row.device().is_cuda()) copy_bytes(row.raw(), row.device(), marks.raw(), kCpu, row.bytes());
}

size_t Generator::add(std::span<const int32_t> prompt, const std::filesystem::path& state) {
  check_ids(prompt);
  const int32_t slot = pool_.acquire();
  StateNote note;
  try {
    note = load_state(state, model_, pool_, slot);
  } catch (...) {  // a damaged file leaves nothing behind
    pool_.release(slot);
    throw;
  }
  std::vector<int32_t> text = note.pending;
  text.insert(text.end(), prompt.begin(), prompt.end());
  Sequence& sequence = start(slot, text);
  sequence.tokens = note.tokens + static_cast<int64_t>(prompt.size());
  if (note.seen.defined()) {
    std::vector<int32_t> marked;
    const auto marks = note.seen.values<uint8_t>();
    for (size_t id = 0; id < marks.size(); ++id) {
      if (marks[id] != 0) marked.push_back(static_cast<int32_t>(id));
    }
    mark_seen(sequence.slot, marked);
  }
  return sequence.index;
}

size_t Generator::add(std::span<const int32_t> prompt, const ModelState& states, int64_t slot,
                      int64_t tokens) {
  const size_t index = add(prompt);
  Sequence& sequence = *sequences_[index];
  copy_slot(states, slot, pool_.state(), sequence.slot);
  sequence.tokens += tokens;
  return index;
}

void Generator::copy_state(size_t index, const ModelState& to, int64_t slot) const {
  copy_slot(pool_.state(), sequences_.at(index)->slot, to, slot);
}

// The logits after each active sequence's last token, [B, V].
Tensor Generator::read_pending(std::span<Sequence* const> active) {
  std::vector<SequenceRunner::Input> inputs;
  for (const Sequence* s : active) inputs.push_back({s->slot, s->pending});
  Tensor logits = runner_.read(inputs);
  for (Sequence* s : active) s->pending.clear();
  return logits;
}

// Reads what is pending and chooses each active sequence's next id.
std::vector<int32_t> Generator::next_ids(std::span<Sequence* const> active, const GenerateOptions& options) {
  std::vector<SamplingParams> params;
  std::vector<int32_t> slots;
  std::vector<int64_t> positions;
  for (const Sequence* s : active) {
    params.push_back(options.sampling);
    params.back().seed += s->index;
    slots.push_back(s->slot);
    positions.push_back(s->tokens);
  }
  std::vector<int32_t> ids;
#ifdef SSM_CUDA
  const auto one = [](const Sequence* s) { return s->pending.size() == 1; };
  if (stepper_ && std::all_of(active.begin(), active.end(), one)) {
    std::vector<Stepper::Input> inputs;
    for (size_t i = 0; i < active.size(); ++i) {
      inputs.push_back({active[i]->pending[0], {params[i], slots[i], positions[i]}});
      active[i]->pending.clear();
    }
    ids = stepper_->step(inputs);
  }
#endif
  if (ids.empty()) {
    const Tensor chosen =
        sample(read_pending(active), model_.usable_vocab(), params, seen_, slots, positions).to(kCpu);
    const auto values = chosen.values<int32_t>();
    ids.assign(values.begin(), values.end());
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    SSM_CHECK(ids[i] >= 0, "sequence {} has no finite score for its next token", active[i]->index);
  }
  return ids;
}

// Adds a sampled id to its sequence; false when the sequence ends with it.
bool Generator::accept(Sequence& s, int32_t id, const GenerateOptions& options, const OnToken& on_token) {
  s.out.ids.push_back(id);
  s.pending.push_back(id);
  ++s.tokens;
  const std::vector<int32_t>& ends = options.eos ? *options.eos : model_.eos;
  const bool eos = !options.ignore_eos && std::find(ends.begin(), ends.end(), id) != ends.end();
  std::string shown;
  if (s.decoder && !eos) shown = s.matcher.push(s.decoder->push(id));
  s.out.text += shown;
  const bool go_on = !on_token || on_token(s.index, id, shown);
  const bool full =
      options.max_new_tokens >= 0 && static_cast<int64_t>(s.out.ids.size()) >= options.max_new_tokens;
  if (!eos && !s.matcher.matched() && go_on && !full) return true;
  s.out.reason = eos                   ? StopReason::eos
                 : s.matcher.matched() ? StopReason::stop
                 : !go_on              ? StopReason::cancelled
                                       : StopReason::length;
  if (s.decoder) {
    std::string rest;
    if (!s.matcher.matched()) rest = s.matcher.push(s.decoder->finish());
    rest += s.matcher.finish();
    s.out.text += rest;
    if (go_on && on_token && !rest.empty()) on_token(s.index, -1, rest);
  }
  return false;
}

std::vector<Generated> Generator::run(const GenerateOptions& options, const OnToken& on_token) {
  check(options.sampling);
  for (const std::string& stop : options.stop) SSM_CHECK(!stop.empty(), "a stop string is empty");
  if (!options.stop.empty()) model_.need_tokenizer();
  std::vector<Sequence*> active;
  for (const auto& sequence : sequences_) {
    sequence->out = {};
    sequence->matcher = StopMatcher(options.stop);
    if (model_.tokenizer) sequence->decoder = std::make_unique<text::StreamDecoder>(*model_.tokenizer);
    active.push_back(sequence.get());
  }
  if (options.max_new_tokens ==
      0) {  // read the prompts, but for the last token: a state file needs one to go on
    std::vector<SequenceRunner::Input> inputs;
    for (Sequence* s : active) {
      if (s->pending.size() > 1)
        inputs.push_back({s->slot, std::span(s->pending).first(s->pending.size() - 1)});
    }
    if (!inputs.empty()) runner_.read(inputs);
    for (Sequence* s : active) s->pending = {s->pending.back()};
    active.clear();
  }
  while (!active.empty()) {
    const std::vector<int32_t> ids = next_ids(active, options);
    std::vector<Sequence*> next;
    for (size_t i = 0; i < active.size(); ++i) {
      if (accept(*active[i], ids[i], options, on_token)) next.push_back(active[i]);
    }
    active = std::move(next);
  }
  std::vector<Generated> results;
  for (const auto& sequence : sequences_) results.push_back(sequence->out);
  return results;
}

void Generator::save(size_t index, const std::filesystem::path& path) const {
  const Sequence& s = *sequences_.at(index);
  save_state(path, model_, pool_, s.slot, {s.tokens, s.pending, seen_.select(0, s.slot)});
}

}  // namespace ssm
