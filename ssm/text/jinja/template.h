// Chat templates: the part of Jinja that those of known models use, with the settings and additions of
// Transformers (trim_blocks, lstrip_blocks, generation blocks, raise_exception, strftime_now, its tojson).
// docs/formats.md lists what is understood; anything else is refused by name, with the template's line.
//
// A template is hostile input: its size, nesting, steps and what it makes are bounded, and it can reach
// nothing but the variables it is given.
#pragma once

#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ssm::text::jinja {

struct Program;

// Bytes [begin, end) of the text.
struct Span {
  size_t begin, end;
};

struct Rendered {
  std::string text;
  std::vector<Span> generated;  // what generation blocks wrote, in order
};

class Template {
 public:
  // `name` is what errors call it; they begin with "NAME:LINE: ". At most 1 MiB.
  Template(std::string_view source, std::string name);

  bool marks_generation() const;  // whether it has generation blocks

  // `variables` is an object, nested at most 60 levels. strftime_now exists where `now` is given.
  Rendered render(const nlohmann::ordered_json& variables, const std::optional<std::tm>& now = {}) const;

 private:
  std::shared_ptr<const Program> program_;
};

}  // namespace ssm::text::jinja
