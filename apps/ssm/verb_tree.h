// What the command can be given, as its parser knows it: for shells' completion and manual pages.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace ssm::app {

struct ArgumentInfo {
  std::vector<std::string> names;    // "-n", "--max-new-tokens"; of a positional one: "MODEL"
  std::string value;                 // "N", "FILE"; empty: a flag without one
  std::vector<std::string> choices;  // the only values; none: any
  std::string about;
  bool positional = false, required = false, repeats = false;

  bool is_path() const;  // its value is a file's or folder's name, or may be
};

struct VerbInfo {
  std::vector<std::string> path;  // "bench", "ops"; empty: the program
  std::string about, footer;
  std::vector<ArgumentInfo> arguments;
  std::vector<VerbInfo> verbs;

  std::string joined(const char* between) const;  // of the path
  bool takes_paths() const;                       // as positional arguments
};

VerbInfo describe_verb(CLI::App& app);

// `of` and all below it, in order.
std::vector<const VerbInfo*> all_verbs(const VerbInfo& of);

// All of `parts` with `between` them.
std::string join(const std::vector<std::string>& parts, const char* between);

}  // namespace ssm::app
