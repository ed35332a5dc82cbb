// Tokens that are recognised in the text before anything else looks at it.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ssm::text {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool single_word = false;  // only where no word character stands beside it
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;
  bool normalized = false;  // looked for in the normalized text
  bool special = false;
};

// Finds a set of tokens, leftmost first, the longest at a place, as the reference does.
class AddedTokenFinder {
 public:
  // Texts longer than this would make a search quadratic.
  static constexpr size_t kMaxContentBytes = 1024;

  // `pattern` is what to look for (the content, or its normalized form). False: it was added before.
  bool add(std::string_view pattern, const AddedToken& token);
  bool empty() const { return tokens_.empty(); }

  // Gives the text's parts in order: text without such tokens (id empty), and tokens.
  using Part = std::function<void(std::string_view text, std::optional<int32_t> id)>;
  void split(std::string_view text, const Part& part) const;

 private:
  struct Node {
    uint8_t byte = 0;
    int32_t token = -1;  // index into tokens_
    uint32_t child = 0, sibling = 0;
  };
  struct Match {
    size_t begin, end;
    const AddedToken* token;
  };
  std::optional<Match> next_match(std::string_view text, size_t from) const;
  uint32_t child_of(uint32_t node, uint8_t byte) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  std::array<uint32_t, 256> first_{};  // the node of a pattern's first byte; 0: none
};

}  // namespace ssm::text
