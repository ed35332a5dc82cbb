#include "ssm/runtime/text_pool.h"

#include <algorithm>

namespace ssm {

TextPool::TextPool(const LoadedModel& model, int64_t slots)
    : model_(model),
      states_(*model.model, slots, model.state, model.kv_bytes),
      texts_(static_cast<size_t>(slots)),
      seen_(Tensor::zeros({states_.rows(), model.model->vocab_size()}, DType::u8, model.device)) {}

void TextPool::check_ids(std::span<const int32_t> ids) const {
  const int64_t vocab = model_.model->vocab_size();
  for (size_t i = 0; i < ids.size(); ++i) {
    SSM_CHECK(ids[i] >= 0 && ids[i] < vocab, "token {} at position {} is outside the vocabulary of {}",
              ids[i], i, vocab);
  }
}

int32_t TextPool::begin(std::span<const int32_t> ids) {
  SSM_CHECK(!ids.empty(), "the prompt is empty: nothing to continue");
  check_ids(ids);
  const int32_t slot = states_.acquire();
  set(slot, {}, ids);
  return slot;
}

int32_t TextPool::begin(const TextCopy& text, std::span<const int32_t> more) {
  check_ids(more);
  const int32_t slot = states_.acquire([&](int32_t taken) { states_.copy_in(taken, text.state); });
  set(slot, text.note, more);
  return slot;
}

int32_t TextPool::begin(const std::filesystem::path& state_file, std::span<const int32_t> more) {
  return begin(load_text(state_file, model_, state_layout(states_)), more);
}

int32_t TextPool::begin(const ModelState& states, int64_t from, int64_t tokens,
                        std::span<const int32_t> more) {
  check_ids(more);
  const int32_t slot =
      states_.acquire([&](int32_t taken) { copy_slot(states, from, states_.state(), taken); });
  set(slot, {.tokens = tokens, .pending = {}, .seen = {}}, more);
  return slot;
}

int32_t TextPool::begin(std::span<const int32_t> ids, const Tensor& state, DType wide, int64_t tokens) {
  SSM_CHECK(tokens <= std::ssize(ids), "a state of {} tokens for a text of {}", tokens, ids.size());
  check_ids(ids);
  const int32_t slot = states_.acquire([&](int32_t taken) { states_.copy_in(taken, state, wide); });
  set(slot, {}, ids);
  was_read(slot, tokens);
  return slot;
}

// The text of an acquired slot whose state is set.
void TextPool::set(int32_t slot, const StateNote& note, std::span<const int32_t> more) {
  Text& text = at(slot);
  text.pending = note.pending;
  text.read = 0;
  text.pending.insert(text.pending.end(), more.begin(), more.end());
  text.tokens = note.tokens + static_cast<int64_t>(more.size());
  const Tensor row = seen_.select(0, slot);
  if (note.seen.defined()) {
    copy_bytes(row.raw(), row.device(), note.seen.raw(), kCpu, row.bytes());
  } else {
    zero_bytes(row.raw(), row.device(), row.bytes());  // of a text that had the slot before
  }
  mark_seen(slot, text.pending);
}

void TextPool::release(int32_t slot) {
  states_.release(slot);
  at(slot) = {};
}

void TextPool::extend(int32_t slot, std::span<const int32_t> ids, bool without_last) {
  Text& text = at(slot);
  const size_t dropped = without_last ? 1 : 0;
  SSM_CHECK(pending(slot).size() + ids.size() > dropped, "the text would have no last token");
  check_ids(ids);
  text.pending.resize(text.pending.size() - dropped);
  text.pending.insert(text.pending.end(), ids.begin(), ids.end());
  text.tokens += static_cast<int64_t>(ids.size()) - static_cast<int64_t>(dropped);
  mark_seen(slot, ids);
}

void TextPool::mark_seen(int32_t slot, std::span<const int32_t> ids) {
  const Tensor row = seen_.select(0, slot), marks = row.to(kCpu);
  for (const int32_t id : ids) marks.data<uint8_t>()[id] = 1;
  if (row.device().is_cuda()) copy_bytes(row.raw(), row.device(), marks.raw(), kCpu, row.bytes());
}

void TextPool::was_read(int32_t slot, int64_t count) {
  Text& text = at(slot);
  text.read += static_cast<size_t>(count);
  if (text.read < text.pending.size()) return;
  text.pending.clear();
  text.read = 0;
}

void TextPool::append(int32_t slot, int32_t id) {
  at(slot).pending.push_back(id);
  ++at(slot).tokens;
}

void TextPool::copy(int32_t from, int32_t to) {
  states_.copy(from, to);
  at(to) = at(from);
  const Tensor source = seen_.select(0, from);
  copy_bytes(seen_.select(0, to).raw(), seen_.device(), source.raw(), seen_.device(), source.bytes());
}

TextCopy TextPool::copy_out(int32_t slot) const {
  const ArenaScope heap(nullptr);  // outlives the step
  const std::span<const int32_t> left = pending(slot);
  return {states_.copy_out(slot),
          {.tokens = tokens(slot),
           .pending = {left.begin(), left.end()},
           .seen = seen_.select(0, slot).to(kCpu).clone()}};
}

void TextPool::save(int32_t slot, const std::filesystem::path& path) const {
  save_text(path, model_, state_layout(states_), copy_out(slot));
}

}  // namespace ssm
