// ssm completion: what a shell needs to complete verbs, flags, their values, and files. Made from the parser
// itself, so that it knows what this program knows.
#include <fmt/format.h>

#include <map>

#include "apps/ssm/commands.h"
#include "apps/ssm/output.h"
#include "apps/ssm/verb_tree.h"

namespace ssm::app {
namespace {

std::string replaced(std::string text, const std::string& what, const std::string& by) {
  for (size_t at = 0; (at = text.find(what, at)) != text.npos; at += by.size())
    text.replace(at, what.size(), by);
  return text;
}

// In single quotes, as a shell reads them.
std::string quoted(const std::string& text) { return "'" + replaced(text, "'", R"('\'')") + "'"; }
std::string quoted_for_fish(const std::string& text) {
  return "'" + replaced(replaced(text, "\\", "\\\\"), "'", "\\'") + "'";
}

std::vector<std::string> names_of_verbs(const VerbInfo& verb) {
  std::vector<std::string> names;
  for (const VerbInfo& below : verb.verbs) names.push_back(below.path.back());
  return names;
}

// "/bench|bench/ops": a verb that was found, a slash, and a word that is a verb of it, of all there are.
std::string steps(const VerbInfo& program, const char* between) {
  std::vector<std::string> all;
  for (const VerbInfo* verb : all_verbs(program)) {
    for (const std::string& name : names_of_verbs(*verb))
      all.push_back(quoted(verb->joined("/") + "/" + name));
  }
  return join(all, between);
}

std::string bash_script(const VerbInfo& program) {
  // What may follow a flag that takes a value: by the shell's words, flags of verbs that say the same.
  std::map<std::string, std::vector<std::string>> values;
  std::string words;
  for (const VerbInfo* verb : all_verbs(program)) {
    std::vector<std::string> flags;
    for (const ArgumentInfo& argument : verb->arguments) {
      if (argument.positional) continue;
      const std::string what = argument.is_path() ? "_ssm_files"
                               : argument.choices.empty()
                                   ? ":"
                                   : "_ssm_words " + quoted(join(argument.choices, " "));
      for (const std::string& name : argument.names) {
        flags.push_back(name);
        if (!argument.value.empty()) values[what].push_back(quoted(verb->joined("/") + " " + name));
      }
    }
    std::string otherwise = ":";
    if (!verb->verbs.empty()) otherwise = "_ssm_words " + quoted(join(names_of_verbs(*verb), " "));
    if (verb->takes_paths()) otherwise += verb->verbs.empty() ? "; _ssm_files" : "; _ssm_files more";
    words += fmt::format("    {})\n      if [[ $cur == -* ]]; then _ssm_words {}; else {}; fi ;;\n",
                         quoted(verb->joined("/")), quoted(join(flags, " ")), otherwise);
  }
  std::string cases;
  for (const auto& [what, flags] : values)
    cases += fmt::format("    {})\n      {}; return ;;\n", join(flags, "|"), what);
  return fmt::format(R"(# bash completion for ssm, made by "ssm completion bash"
_ssm_words() {{
  COMPREPLY=($(compgen -W "$1" -- "$cur"))
}}

_ssm_files() {{
  local IFS=$'\n'
  [[ $1 == more ]] || COMPREPLY=()
  COMPREPLY+=($(compgen -f -- "$cur"))
  compopt -o filenames 2>/dev/null
}}

_ssm() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} verb= i
  COMPREPLY=()
  if [[ $cur == = ]]; then cur=; elif [[ $prev == = ]]; then prev=${{COMP_WORDS[COMP_CWORD-2]}}; fi
  for ((i = 1; i < COMP_CWORD; ++i)); do
    case "$verb/${{COMP_WORDS[i]}}" in
      {})
        verb=${{verb:+$verb/}}${{COMP_WORDS[i]}} ;;
    esac
  done
  case "$verb $prev" in
{}  esac
  case "$verb" in
{}  esac
}}

complete -F _ssm ssm
)",
                     steps(program, "|"), cases, words);
}

// The text of a description inside of zsh's _arguments and _describe.
std::string zsh_text(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '[' || c == ']' || c == ':' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

std::string zsh_spec(const ArgumentInfo& argument) {
  const std::string action = argument.is_path()          ? "_files"
                             : !argument.choices.empty() ? "(" + join(argument.choices, " ") + ")"
                                                         : " ";
  const std::string value =
      argument.value.empty() ? "" : fmt::format(":{}:{}", zsh_text(argument.value), action);
  if (argument.positional)
    return quoted((argument.repeats    ? "*"
                   : argument.required ? ":"
                                       : "::") +
                  (argument.repeats ? value : value.substr(1)));
  const std::string before = argument.repeats            ? "*"
                             : argument.names.size() < 2 ? ""
                                                         : "(" + join(argument.names, " ") + ")";
  std::vector<std::string> specs;
  for (const std::string& name : argument.names)
    specs.push_back(quoted(before + name + "[" + zsh_text(argument.about) + "]" + value));
  return join(specs, " \\\n    ");
}

std::string zsh_function(const VerbInfo& verb) {
  std::string out = fmt::format("_ssm{}{}() {{\n", verb.path.empty() ? "" : "_", verb.joined("_"));
  if (!verb.verbs.empty()) {
    std::vector<std::string> described;
    for (const VerbInfo& below : verb.verbs)
      described.push_back(quoted(zsh_text(below.path.back()) + ":" + zsh_text(below.about)));
    out += fmt::format(
        "  local -a verbs=({})\n"
        "  if (( CURRENT > 2 )); then\n"
        "    case $words[2] in\n"
        "      {})\n"
        "        shift words; (( CURRENT-- )); {}_$words[1]; return ;;\n"
        "    esac\n"
        "  elif [[ $PREFIX != -* ]]; then\n"
        "    _describe -t verbs verb verbs\n"
        "  fi\n",
        join(described, "\n    "), join(names_of_verbs(verb), "|"),
        verb.path.empty() ? "_ssm" : "_ssm_" + verb.joined("_"));
  }
  out += "  _arguments -S";
  for (const ArgumentInfo& argument : verb.arguments) out += " \\\n    " + zsh_spec(argument);
  return out + "\n}\n\n";
}

std::string zsh_script(const VerbInfo& program) {
  std::string out = "#compdef ssm\n# zsh completion for ssm, made by \"ssm completion zsh\"\n\n";
  for (const VerbInfo* verb : all_verbs(program)) out += zsh_function(*verb);
  // As a file of $fpath it is the function itself; sourced, it registers it.
  return out + "if [[ $funcstack[1] == _ssm ]]; then\n  _ssm \"$@\"\nelse\n  compdef _ssm ssm\nfi\n";
}

std::string fish_lines(const VerbInfo& verb) {
  const std::string where = fmt::format("complete -c ssm -n \"__ssm_in '{}'\"", verb.joined("/"));
  std::string out;
  for (const VerbInfo& below : verb.verbs) {
    out += fmt::format("{} -a {} -d {}\n", where, below.path.back(), quoted_for_fish(below.about));
  }
  if (verb.takes_paths()) out += where + " -F\n";
  for (const ArgumentInfo& argument : verb.arguments) {
    if (argument.positional) continue;
    out += where;
    for (const std::string& name : argument.names)
      out += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
    if (argument.is_path()) {
      out += " -r -F";
    } else if (!argument.choices.empty()) {
      out += " -x -a " + quoted_for_fish(join(argument.choices, " "));
    } else if (!argument.value.empty()) {
      out += " -x";
    }
    out += " -d " + quoted_for_fish(argument.about) + "\n";
  }
  return out;
}

std::string fish_script(const VerbInfo& program) {
  std::string out = fmt::format(R"(# fish completion for ssm, made by "ssm completion fish"
function __ssm_in
    set -l words (commandline -opc)
    set -l verb ''
    for word in $words[2..-1]
        switch "$verb/$word"
            case {}
                set verb (string trim -l -c / -- "$verb/$word")
        end
    end
    test "$argv[1]" = "$verb"
end

complete -c ssm -f
)",
                                steps(program, " "));
  for (const VerbInfo* verb : all_verbs(program)) out += fish_lines(*verb);
  return out;
}

}  // namespace

void add_completion(CLI::App& program) {
  auto shell = std::make_shared<std::string>();
  CLI::App* verb = program.add_subcommand("completion", "What a shell needs to complete this command");
  verb->add_option("SHELL", *shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  verb->footer(
      "Verbs, flags, values that are one of a few, and files are completed. An installation has it in place "
      "already.\n\n"
      "Examples:\n"
      "  source <(ssm completion bash)\n"
      "  ssm completion zsh > ~/.zfunc/_ssm\n"
      "  ssm completion fish > ~/.config/fish/completions/ssm.fish");
  verb->callback([shell, &program] {
    const VerbInfo tree = describe_verb(program);
    standard_output().write(*shell == "bash"  ? bash_script(tree)
                            : *shell == "zsh" ? zsh_script(tree)
                                              : fish_script(tree));
  });
}

}  // namespace ssm::app
