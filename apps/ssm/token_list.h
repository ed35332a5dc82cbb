// What the command reads besides models: token lists, files, standard input.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ssm::app {

std::string read_stdin();                             // every byte
std::string read_text_file(const std::string& path);  // every byte; throws Error naming the path

// Ids separated by commas or white space, brackets around them allowed. `from` is what errors call it.
std::vector<int32_t> parse_tokens(std::string_view text, std::string_view from);
// The value of --tokens: a list, @FILE, or - for standard input.
std::vector<int32_t> read_tokens(const std::string& argument);

}  // namespace ssm::app
