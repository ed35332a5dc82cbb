// Python's str as far as templates use it, on UTF-8: positions count characters, an ill-formed byte is one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ssm::text::jinja {

int64_t length_of(std::string_view text);
std::vector<std::string_view> characters(std::string_view text);

enum class Side { left, right, both };
// Without the characters of `chars` (without it: white space) at its ends.
std::string_view strip(std::string_view text, std::optional<std::string_view> chars, Side side = Side::both);

std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string capitalize(std::string_view text);
std::string title_filter(std::string_view text);  // jinja2's: after white space and -({[<

// str.split: at white space where there is no separator; `limit` < 0: everywhere.
std::vector<std::string_view> split(std::string_view text, std::optional<std::string_view> separator,
                                    int64_t limit, bool from_right);
std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends);
std::string replace_all(std::string_view text, std::string_view from, std::string_view to, int64_t limit);

std::string python_quoted(std::string_view text);            // repr()
std::string json_quoted(std::string_view text, bool ascii);  // json.dumps
std::string float_text(double value, std::string_view infinity, std::string_view nan);

}  // namespace ssm::text::jinja
