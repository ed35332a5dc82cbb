#include "ssm/text/pre_tokenizer.h"

namespace ssm::text {

void MatchSplitter::match(size_t begin, size_t end) {
  if (told_ < begin) event(begin, false);
  event(end, true);
}

void MatchSplitter::finish() {
  if (told_ < piece_.text.size()) event(piece_.text.size(), false);
  if (waiting_) emit_until(told_);
}

void MatchSplitter::event(size_t end, bool is_match) {
  is_match ^= invert_;
  const bool joins = [&] {
    switch (behavior_) {
      case SplitBehavior::contiguous:
        return is_match == previous_match_;
      case SplitBehavior::merged_with_previous:
        return is_match && !previous_match_;
      case SplitBehavior::merged_with_next:
        return !is_match && previous_match_;
      default:
        return false;
    }
  }();
  if (waiting_ && !joins) emit_until(told_);
  told_ = end;
  waiting_ = true;
  if (behavior_ == SplitBehavior::removed && is_match) {
    waiting_ = false;
    emitted_ = end;
  }
  previous_match_ = is_match;
}

void MatchSplitter::emit_until(size_t end) {
  sink_(
      {piece_.text.substr(emitted_, end - emitted_), piece_.byte_level, piece_.begins_text && emitted_ == 0});
  emitted_ = end;
  waiting_ = false;
}

}  // namespace ssm::text
