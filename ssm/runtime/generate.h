// generate: prompts to continuations, many at a time, streamed token by token. No length limit: the state is
// of fixed size.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "ssm/core/progress.h"
#include "ssm/runtime/request.h"
#include "ssm/runtime/scheduler.h"

namespace ssm {

struct Generated {
  std::vector<int32_t> ids;  // new ones; the end token included where it ended the text
  std::string text;  // of those, without the end token and without the stop string; empty without a tokenizer
  StopReason reason = StopReason::length;
};

class Generator {
 public:
  Generator(const LoadedModel& model, int64_t slots);

  // Starts a sequence and returns its index. From a saved state the text goes on, and `prompt` may be empty.
  size_t add(std::span<const int32_t> prompt);
  size_t add(std::span<const int32_t> prompt, const std::filesystem::path& state);

  // From a slot of the states of a text of which `tokens` are read, elsewhere. The repetition penalty does
  // not know them.
  size_t add(std::span<const int32_t> prompt, const ModelState& states, int64_t slot, int64_t tokens);

  // Forgets all sequences; their slots are free again, and the next one has index 0. What was made at first
  // use (memory, captured steps) stays.
  void clear();

  // The text of sequence `index` goes on with `ids`, as a conversation does; the next run() reads only those.
  // `without_last` first takes back the last id, which was not read yet: an end token, say.
  void extend(size_t index, std::span<const int32_t> ids, bool without_last = false);

  // Called for each new id of sequence `index`, with the text that can be shown now (never half a character,
  // nor what may be the beginning of a stop string). False stops that sequence. The last call of a sequence
  // may carry id -1 with the rest of its text. All prompts are read before the first call.
  using OnToken = std::function<bool(size_t index, int32_t id, std::string_view text)>;
  // `progress` hears how many tokens of the prompts are read.
  std::vector<Generated> run(const GenerateOptions& options, const OnToken& on_token = {},
                             const OnProgress& progress = {});

  // The state of sequence `index`: it has read all of the text but what is pending, its last token.
  void copy_state(size_t index, const ModelState& to, int64_t slot) const;
  // All that sequence `index` has read and written, for a later add(prompt, state).
  void save(size_t index, const std::filesystem::path& path) const;

 private:
  int64_t unread() const;  // tokens of all sequences

  Scheduler scheduler_;
  std::vector<int32_t> slots_;  // of the sequences
};

}  // namespace ssm
