// A template's text as tokens, with Transformers' settings: trim_blocks, lstrip_blocks, one newline at the
// end dropped, "\r\n" and "\r" read as "\n".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ssm::text::jinja {

enum class TokenKind {
  text,
  block_begin,
  block_end,
  print_begin,
  print_end,
  name,
  string,
  integer,
  real,
  sign,
  end
};

struct Token {
  TokenKind kind = TokenKind::end;
  std::string text;  // of a string, what its escapes mean
  int line = 1;
};

// Ends with a token `end`. Throws Error beginning with "NAME:LINE: ".
std::vector<Token> tokens_of(std::string_view source, const std::string& name);

}  // namespace ssm::text::jinja
