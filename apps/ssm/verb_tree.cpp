#include "apps/ssm/verb_tree.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>

namespace ssm::app {
namespace {

constexpr std::array kPathWords{"FILE",   "FILES", "PATH", "FOLDER", "DIR",     "MODEL",
                                "MODELS", "SRC",   "DST",  "DATA",   "ADAPTER", "OUT"};

std::vector<std::string> split(const std::string& text, const char* separators) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find_first_of(separators, begin), text.size());
    if (end > begin) parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

// Of CLI::IsMember, which describes itself as "{a,b}".
std::vector<std::string> choices_of(CLI::Option& option) {
  for (int i = 0;; ++i) {
    const CLI::Validator* validator = nullptr;
    try {
      validator = option.get_validator(i);
    } catch (const CLI::OptionNotFound&) {
      return {};
    }
    const std::string text = validator->get_description();
    if (text.size() > 2 && text.front() == '{' && text.back() == '}')
      return split(text.substr(1, text.size() - 2), ",");
  }
}

ArgumentInfo describe_argument(CLI::Option& option) {
  ArgumentInfo info;
  for (const std::string& name : option.get_snames()) info.names.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) info.names.push_back("--" + name);
  info.positional = info.names.empty();
  if (info.positional) info.names = {option.get_name()};
  const int values = option.get_items_expected_max();
  if (info.positional) {
    info.value = info.names[0];
  } else if (values > 0) {
    info.value = option.get_option_text().empty() ? option.get_type_name() : option.get_option_text();
  }
  info.choices = choices_of(option);
  info.about = option.get_description();
  info.required = option.get_required();
  info.repeats = values > 1 || option.get_multi_option_policy() == CLI::MultiOptionPolicy::TakeAll;
  return info;
}

}  // namespace

bool ArgumentInfo::is_path() const {
  const std::vector<std::string> words = split(value, " |.,");
  return choices.empty() && std::any_of(words.begin(), words.end(), [](const std::string& word) {
           return std::find(kPathWords.begin(), kPathWords.end(), word) != kPathWords.end();
         });
}

std::string VerbInfo::joined(const char* between) const { return join(path, between); }

bool VerbInfo::takes_paths() const {
  return std::any_of(arguments.begin(), arguments.end(),
                     [](const ArgumentInfo& a) { return a.positional && a.is_path(); });
}

VerbInfo describe_verb(CLI::App& app) {
  VerbInfo info;
  for (CLI::App* at = &app; at->get_parent() != nullptr; at = at->get_parent())
    info.path.insert(info.path.begin(), at->get_name());
  info.about = app.get_description();
  info.footer = app.get_footer();
  for (CLI::Option* option : app.get_options()) info.arguments.push_back(describe_argument(*option));
  for (CLI::App* verb : app.get_subcommands([](CLI::App*) { return true; }))
    info.verbs.push_back(describe_verb(*verb));
  return info;
}

std::vector<const VerbInfo*> all_verbs(const VerbInfo& of) {
  std::vector<const VerbInfo*> all{&of};
  for (const VerbInfo& verb : of.verbs) {
    for (const VerbInfo* one : all_verbs(verb)) all.push_back(one);
  }
  return all;
}

std::string join(const std::vector<std::string>& parts, const char* between) {
  return fmt::format("{}", fmt::join(parts, between));
}

}  // namespace ssm::app
