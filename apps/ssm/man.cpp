// ssm man: the manual pages, made from the parser itself.
#include <fmt/format.h>

#include <cctype>
#include <filesystem>
#include <sstream>

#include "apps/ssm/commands.h"
#include "apps/ssm/flags.h"
#include "apps/ssm/output.h"
#include "apps/ssm/verb_tree.h"
#include "ssm/core/atomic_file.h"

namespace ssm::app {
namespace {

namespace fs = std::filesystem;

// Text as roff reads it: no character is one of its own.
std::string roff(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '\\' ? "\\e" : c == '-' ? "\\-" : std::string(1, c);
  if (out.starts_with('.') || out.starts_with('\'')) out = "\\&" + out;
  return out;
}

std::string bold(const std::string& text) { return "\\fB" + roff(text) + "\\fR"; }
std::string italic(const std::string& text) { return "\\fI" + roff(text) + "\\fR"; }

std::string in_capitals(std::string text) {
  for (char& c : text) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return text;
}

std::string page_name(const VerbInfo& verb) { return verb.path.empty() ? "ssm" : "ssm-" + verb.joined("-"); }

// Running text; lines that are indented or stand under "Examples:" stay as they are.
std::string footer_of(const VerbInfo& verb) {
  std::string out;
  std::istringstream lines(verb.footer);
  bool literal = false, examples = false;
  const auto set_literal = [&](bool on) {
    if (literal != on) out += !on ? ".fi\n" : out.ends_with(".SH EXAMPLES\n") ? ".nf\n" : ".PP\n.nf\n";
    literal = on;
  };
  bool begun = false, blank = false;
  for (std::string line; std::getline(lines, line);) {
    if (line == "Examples:" || line == "Example:") {
      set_literal(false);
      out += ".SH EXAMPLES\n";
      begun = examples = true;
      blank = false;
      continue;
    }
    if (line.empty()) {
      blank = begun;
      continue;
    }
    if (!begun) out += ".SH DESCRIPTION\n";
    begun = true;
    const bool indented = line.starts_with("  ");
    set_literal(indented);
    if (blank && !indented) out += ".PP\n";
    blank = false;
    out += roff(examples && indented ? line.substr(2) : line) + "\n";
  }
  set_literal(false);
  return out;
}

std::string synopsis_of(const VerbInfo& verb) {
  const std::string command = verb.path.empty() ? "ssm" : "ssm " + verb.joined(" ");
  std::string out = ".SH SYNOPSIS\n" + bold(command);
  if (verb.path.empty()) out += " " + italic("VERB");
  for (const ArgumentInfo& argument : verb.arguments) {
    if (!argument.positional) continue;
    const std::string name = italic(argument.names[0]) + (argument.repeats ? " ..." : "");
    out += argument.required ? " " + name : " [" + name + "]";
  }
  return out + " [" + italic("options") + "]\n";
}

std::string arguments_of(const VerbInfo& verb, bool positional, const char* heading) {
  std::string out;
  for (const ArgumentInfo& argument : verb.arguments) {
    if (argument.positional != positional) continue;
    if (out.empty()) out = fmt::format(".SH {}\n", heading);
    std::vector<std::string> names;
    for (const std::string& name : argument.names) names.push_back(positional ? italic(name) : bold(name));
    out += ".TP\n" + join(names, ", ");
    if (!positional && !argument.value.empty()) out += " " + italic(argument.value);
    out += "\n" + roff(argument.about) + "\n";
  }
  return out;
}

std::string verbs_of(const VerbInfo& verb) {
  std::string out;
  for (const VerbInfo& below : verb.verbs) {
    if (out.empty()) out = ".SH VERBS\n";
    out += ".TP\n" + bold(below.path.back()) + "\n" + roff(below.about) + " (" + italic(page_name(below)) +
           "(1)).\n";
  }
  return out;
}

std::string page(const VerbInfo& verb) {
  std::string out = fmt::format(".\\\" Made by \"ssm man\".\n.TH {} 1 \"\" \"ssm {}\" \"ssm.cpp\"\n",
                                roff(in_capitals(page_name(verb))), SSM_VERSION);
  out += ".SH NAME\n" + roff(page_name(verb)) + " \\- " + roff(verb.about) + "\n" + synopsis_of(verb);
  out += verbs_of(verb) + arguments_of(verb, true, "ARGUMENTS") + arguments_of(verb, false, "OPTIONS") +
         footer_of(verb);
  if (!verb.path.empty()) out += ".SH SEE ALSO\n" + bold("ssm") + "(1)\n";
  return out;
}

struct Arguments {
  std::vector<std::string> verb;
  std::string folder;
};

void run(const Arguments& arguments, const VerbInfo& program) {
  if (arguments.folder.empty()) {
    for (const VerbInfo* verb : all_verbs(program)) {
      if (verb->path == arguments.verb) return standard_output().write(page(*verb));
    }
    fail_usage("{}: no such verb", join(arguments.verb, " "));
  }
  std::error_code error;
  fs::create_directories(arguments.folder, error);
  SSM_CHECK(!error, "{}: cannot create this folder: {}", arguments.folder, error.message());
  for (const VerbInfo* verb : all_verbs(program))
    write_whole(fs::path(arguments.folder) / (page_name(*verb) + ".1"), page(*verb));
}

}  // namespace

void add_man(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* verb = program.add_subcommand("man", "Manual pages, as man reads them");
  CLI::Option* which = verb->add_option("VERB", arguments->verb, "Its page; without it that of ssm");
  verb->add_option("--out", arguments->folder,
                   "Write all of them into this folder: ssm.1, ssm-generate.1, ...")
      ->option_text("DIR")
      ->excludes(which);
  verb->footer(
      "Examples:\n"
      "  ssm man generate | man -l -\n"
      "  ssm man --out ~/.local/share/man/man1");
  verb->callback([arguments, &program] { run(*arguments, describe_verb(program)); });
}

}  // namespace ssm::app
