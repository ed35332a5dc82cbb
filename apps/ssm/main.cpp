// ssm: the command. Parses the arguments, runs one verb, and turns any failure into one line on stderr:
// exit code 1, or 2 for arguments that make no sense.
#include <fmt/format.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <csignal>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "apps/ssm/commands.h"
#include "apps/ssm/output.h"
#include "ssm/core/error.h"
#include "ssm/core/log.h"

namespace ssm::app {
namespace {

constexpr int kFailure = 1, kUsage = 2;

// Names of files and tensors come from outside: nothing of them may start a new line or move the cursor.
std::string one_line(std::string_view text) {
  std::string line(text);
  while (!line.empty() && static_cast<unsigned char>(line.back()) <= ' ') line.pop_back();
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < ' ' || c == 0x7f) c = ' ';
  }
  return line;
}

void set_up_logging() {
  spdlog::set_default_logger(spdlog::stderr_logger_mt("ssm"));
  spdlog::set_pattern("ssm: %v");
  set_log_handler([](LogLevel level, std::string_view message) {
    if (level == LogLevel::warning) spdlog::warn("warning: {}", one_line(message));
  });
}

int fail_with(int code, std::string_view message) {
  standard_output().discard();
  spdlog::error("{}", one_line(message));
  return code;
}

void describe(CLI::App& program) {
  program.set_help_flag("-h,--help", "Print this help and exit");
  program.set_version_flag("--version", "ssm " SSM_VERSION, "Print the version and exit");
  program.require_subcommand(1);
  program.get_formatter()->column_width(34);
  program.footer(
      "MODEL is a folder as it was downloaded, a .gguf file, a name of the Hugging Face hub\n"
      "(owner/name[@revision], downloaded when it is not here), or absent: then the small bundled model.\n\n"
      "Examples:\n"
      "  ssm generate \"Once upon a time\"\n"
      "  ssm generate state-spaces/mamba-130m-hf \"The capital of France is\" --temperature 0\n"
      "  ssm score ./my-model --file book.txt\n"
      "  ssm VERB --help");
  add_generate(program);
  add_chat(program);
  add_score(program);
  add_serve(program);
  add_pull(program);
  add_tokenize(program);
  add_tokenizer(program);
  add_finetune(program);
  add_merge(program);
  add_convert(program);
  add_quantize(program);
  add_info(program);
  add_train(program);
  add_bench(program);
  add_completion(program);
  add_man(program);
}

// What was asked for has a page of its own: "bench compare ".
std::string path_to_help(const CLI::App& program) {
  std::string path;
  for (const CLI::App* at = &program; !at->get_subcommands().empty();) {
    at = at->get_subcommands()[0];
    path += at->get_name() + " ";
  }
  return path;
}

// The first argument that is neither a flag nor the name of one of `app`'s verbs, where it needs one.
std::optional<std::string> unknown_verb(CLI::App& app, int argc, char** argv, int at) {
  if (app.get_require_subcommand_min() == 0 || at >= argc) return std::nullopt;
  const std::string verb = argv[at];
  const std::vector<CLI::App*> found =
      app.get_subcommands([&](const CLI::App* known) { return known->get_name() == verb; });
  if (!found.empty()) return unknown_verb(*found[0], argc, argv, at + 1);
  const CLI::Option* flag = app.get_option_no_throw(verb);
  return flag == nullptr ? std::optional(verb) : std::nullopt;
}

int run(int argc, char** argv) {
  CLI::App program("Runs Mamba-family language models.", "ssm");
  describe(program);
  if (argc < 2) {
    standard_output().write(program.help());
    standard_output().flush();
    return 0;
  }
  if (const auto verb = unknown_verb(program, argc, argv, 1)) {
    const char* what = verb->starts_with('-') ? "flag" : "verb";
    return fail_with(kUsage, fmt::format("{}: no such {} (see ssm --help)", *verb, what));
  }
  try {
    program.parse(argc, argv);
    standard_output().flush();
    return 0;
  } catch (const CLI::Success& e) {  // --help, --version
    const auto chosen = program.get_subcommands();
    const bool version = dynamic_cast<const CLI::CallForVersion*>(&e) != nullptr;
    standard_output().write(version ? std::string(e.what()) + "\n"
                                    : (chosen.empty() ? program.help() : chosen[0]->help("ssm")));
    standard_output().flush();
    return 0;
  } catch (const CLI::ParseError& e) {
    return fail_with(kUsage, fmt::format("{} (see ssm {}--help)", e.what(), path_to_help(program)));
  }
}

int guarded(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is seen by write()
  set_up_logging();
  try {
    return run(argc, argv);
  } catch (const BrokenPipe&) {
    standard_output().discard();
    return 0;  // the reader has had enough
  } catch (const std::bad_alloc&) {
    return fail_with(kFailure, "not enough memory");
  } catch (const std::exception& e) {
    return fail_with(kFailure, e.what());
  } catch (...) {
    return fail_with(kFailure, "an unknown failure");
  }
}

}  // namespace
}  // namespace ssm::app

int main(int argc, char** argv) { return ssm::app::guarded(argc, argv); }
