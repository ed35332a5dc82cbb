#include "ssm/text/tokenizer.h"
#include "ssm/text/utf8.h"

namespace ssm::text {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// The bytes of `id` as they stand in the text. `drop_space`: whether a leading space is dropped; updated.
std::string_view next_bytes(const Tokenizer& tokenizer, int32_t id, bool& drop_space) {
  std::string_view bytes = tokenizer.bytes_of(id);
  if (bytes.empty()) return bytes;
  if (drop_space && bytes.front() == ' ') bytes.remove_prefix(1);
  drop_space = tokenizer.drops_space_after(id);
  return bytes;
}

// Whether `text` (shorter than its first byte promises) can become a character when more bytes follow.
bool may_become_character(std::string_view text) {
  const uint8_t lead = static_cast<uint8_t>(text[0]);
  if (utf8_length(lead) <= text.size()) return false;
  if (text.size() > 1 && !utf8_second_byte(lead, static_cast<uint8_t>(text[1]))) return false;
  return text.size() < 3 || (static_cast<uint8_t>(text[2]) & 0xC0) == 0x80;
}

}  // namespace

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string out;
  bool drop_space = drops_first_space();
  for (const int32_t id : ids) out.append(next_bytes(*this, id, drop_space));
  return out;
}

std::string StreamDecoder::push(int32_t id) {
  pending_.append(next_bytes(tokenizer_, id, drop_space_));
  std::string out;
  size_t at = 0;
  while (at < pending_.size()) {
    const Utf8Step step = utf8_step(pending_, at);
    const std::string_view rest = std::string_view(pending_).substr(at);
    if (step.code_point >= 0) {
      out.append(rest.substr(0, step.size));
    } else if (rest.size() < 4 && may_become_character(rest)) {
      break;
    } else {
      out.append(kReplacement);
    }
    at += step.size;
  }
  pending_.erase(0, at);
  return out;
}

std::string StreamDecoder::finish() {
  std::string out;
  for (size_t i = 0; i < pending_.size(); ++i) out.append(kReplacement);
  pending_.clear();
  return out;
}

}  // namespace ssm::text
