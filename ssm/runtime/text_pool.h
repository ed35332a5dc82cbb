// TextPool: the texts that a model is reading or writing, by slot. A text is its state, the ids at its end
// that were not read into the state yet, how many ids it holds, and which ids it has seen.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "ssm/runtime/state_file.h"

namespace ssm {

class TextPool {
 public:
  TextPool(const LoadedModel& model, int64_t slots);

  // Throw Error for an id outside of the vocabulary, by position, or when no slot is free; nothing has
  // changed then.
  int32_t begin(std::span<const int32_t> ids);
  int32_t begin(const TextCopy& text, std::span<const int32_t> more);
  int32_t begin(const std::filesystem::path& state_file, std::span<const int32_t> more);
  // After `tokens` ids that were read elsewhere, into `from`'s slot of `states`.
  int32_t begin(const ModelState& states, int64_t from, int64_t tokens, std::span<const int32_t> more);
  // After the first `tokens` of `ids`, which need no reading; the state as of StatePool::copy_in.
  int32_t begin(std::span<const int32_t> ids, const Tensor& state, DType wide, int64_t tokens);
  void release(int32_t slot);

  // The text goes on with `ids`. `without_last` first takes back the last id, which was not read yet: an end
  // token, say. Throws Error where no last id would be left to read.
  void extend(int32_t slot, std::span<const int32_t> ids, bool without_last = false);

  std::span<const int32_t> pending(int32_t slot) const {
    return std::span(at(slot).pending).subspan(at(slot).read);
  }
  int64_t tokens(int32_t slot) const { return at(slot).tokens; }  // pending ones included

  void was_read(int32_t slot, int64_t count);  // the first of what is pending
  void append(int32_t slot, int32_t id);       // which sample() chose and marked as seen
  void copy(int32_t from, int32_t to);         // both acquired; `to` becomes the same text

  TextCopy copy_out(int32_t slot) const;
  void save(int32_t slot, const std::filesystem::path& path) const;

  const StatePool& states() const { return states_; }
  StatePool& states() { return states_; }
  const Tensor& seen() const { return seen_; }  // [the pool's rows, V] u8: for the repetition penalty
  void check_ids(std::span<const int32_t> ids) const;

 private:
  struct Text {
    std::vector<int32_t> pending;
    size_t read = 0;  // of the pending ones: a long prompt is read piece by piece
    int64_t tokens = 0;
  };
  const Text& at(int32_t slot) const { return texts_[static_cast<size_t>(slot)]; }
  Text& at(int32_t slot) { return texts_[static_cast<size_t>(slot)]; }
  void mark_seen(int32_t slot, std::span<const int32_t> ids);
  void set(int32_t slot, const StateNote& note, std::span<const int32_t> more);

  const LoadedModel& model_;
  StatePool states_;
  std::vector<Text> texts_;
  Tensor seen_;
};

}  // namespace ssm
