#include "ssm/text/added_tokens.h"

#include <algorithm>

#include "ssm/text/unicode.h"
#include "ssm/text/utf8.h"

namespace ssm::text {
namespace {

bool is_single_word(std::string_view text, size_t begin, size_t end) {
  const bool word_before = begin > 0 && is_word(utf8_step_back(text, begin).code_point);
  const bool word_after = end < text.size() && is_word(utf8_step(text, end).code_point);
  return !word_before && !word_after;
}

size_t without_spaces_before(std::string_view text, size_t at, size_t least) {
  while (at > least) {
    const Utf8Step step = utf8_step_back(text, at);
    if (!is_space(step.code_point)) break;
    at -= step.size;
  }
  return std::max(at, least);
}

size_t without_spaces_after(std::string_view text, size_t at) {
  while (at < text.size()) {
    const Utf8Step step = utf8_step(text, at);
    if (!is_space(step.code_point)) break;
    at += step.size;
  }
  return at;
}

}  // namespace

uint32_t AddedTokenFinder::child_of(uint32_t node, uint8_t byte) const {
  uint32_t child = nodes_[node].child;
  while (child != 0 && nodes_[child].byte != byte) child = nodes_[child].sibling;
  return child;
}

bool AddedTokenFinder::add(std::string_view pattern, const AddedToken& token) {
  if (nodes_.empty()) nodes_.emplace_back();  // node 0 stands for none
  const auto make = [&](uint8_t byte, uint32_t sibling) {
    nodes_.push_back({byte, -1, 0, sibling});
    return static_cast<uint32_t>(nodes_.size() - 1);
  };
  const auto byte_at = [&](size_t i) { return static_cast<uint8_t>(pattern[i]); };
  uint32_t node = first_[byte_at(0)];
  if (node == 0) node = first_[byte_at(0)] = make(byte_at(0), 0);
  for (size_t i = 1; i < pattern.size(); ++i) {
    uint32_t child = child_of(node, byte_at(i));
    if (child == 0) {
      child = make(byte_at(i), nodes_[node].child);
      nodes_[node].child = child;
    }
    node = child;
  }
  if (nodes_[node].token >= 0) return false;
  nodes_[node].token = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
  return true;
}

std::optional<AddedTokenFinder::Match> AddedTokenFinder::next_match(std::string_view text,
                                                                    size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    uint32_t node = first_[static_cast<uint8_t>(text[begin])];
    std::optional<Match> longest;
    for (size_t at = begin + 1; node != 0; ++at) {
      if (nodes_[node].token >= 0) longest = {begin, at, &tokens_[static_cast<size_t>(nodes_[node].token)]};
      if (at == text.size()) break;
      node = child_of(node, static_cast<uint8_t>(text[at]));
    }
    if (longest) return longest;
  }
  return std::nullopt;
}

void AddedTokenFinder::split(std::string_view text, const Part& part) const {
  if (tokens_.empty()) {
    if (!text.empty()) part(text, std::nullopt);
    return;
  }
  size_t done = 0;
  size_t from = 0;
  while (const auto match = next_match(text, from)) {
    from = match->end;
    const AddedToken& token = *match->token;
    size_t begin = match->begin;
    size_t end = match->end;
    if (token.single_word && !is_single_word(text, begin, end)) continue;
    // A token before may have taken these spaces already, and even a token among them: the search goes on
    // right behind the match, not behind its spaces. So does the reference.
    if (token.lstrip) begin = without_spaces_before(text, begin, done);
    if (token.rstrip) end = without_spaces_after(text, end);
    if (done < begin) part(text.substr(done, begin - done), std::nullopt);
    if (begin < end) part(text.substr(begin, end - begin), token.id);
    done = end;
  }
  if (done < text.size()) part(text.substr(done), std::nullopt);
}

}  // namespace ssm::text
