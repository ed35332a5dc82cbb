// ssm tokenize: text to ids and back.
#include <fmt/ranges.h>

#include "apps/ssm/commands.h"
#include "apps/ssm/flags.h"
#include "apps/ssm/model_options.h"
#include "apps/ssm/output.h"
#include "apps/ssm/resolve_model.h"
#include "apps/ssm/token_list.h"
#include "ssm/load/tokenizer.h"

namespace ssm::app {
namespace {

struct Arguments {
  ModelOptions model;
  bool decode = false;
  std::string tokens = "-";
};

std::unique_ptr<text::Tokenizer> open(const ModelOptions& options) {
  const std::filesystem::path path =
      options.tokenizer.empty() ? resolve_model(options.model) : std::filesystem::path(options.tokenizer);
  auto tokenizer = open_model_tokenizer(path);
  SSM_CHECK(tokenizer,
            "{}: no tokenizer.json and no tokenizer.model in this folder (--tokenizer PATH names one)",
            path.string());
  return tokenizer;
}

void write_ids(const std::vector<int32_t>& ids, bool json) {
  Output& out = standard_output();
  if (json) out.write("{\"ids\":[");
  for (size_t i = 0; i < ids.size(); ++i) out.write((i ? "," : "") + std::to_string(ids[i]));
  out.write(json ? "]}\n" : "\n");
}

void run(const Arguments& arguments) {
  const auto tokenizer = open(arguments.model);
  if (!arguments.decode) {
    check_usage(arguments.tokens == "-",
                "--tokens goes with --decode; without it the text is read from standard input");
    return write_ids(tokenizer->encode(read_stdin()), arguments.model.json);
  }
  const std::string text = tokenizer->decode(read_tokens(arguments.tokens));
  if (arguments.model.json) {
    print_json({{"text", text}});
  } else {
    standard_output().write(text);  // the exact bytes, and no newline of our own
  }
}

}  // namespace

void add_tokenize(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* verb = program.add_subcommand("tokenize", "Text on standard input to token ids, or back");
  add_model_argument(*verb, arguments->model);
  verb->add_flag("--decode", arguments->decode, "Ids to text");
  verb->add_option("--tokens", arguments->tokens,
                   "With --decode: ids, @FILE, or - for standard input (default)")
      ->option_text("LIST");
  add_tokenizer_flag(*verb, arguments->model);
  add_json_flag(*verb, arguments->model);
  verb->footer(
      "Every byte of standard input is encoded and no token is added; special tokens in the text are "
      "recognised,\n"
      "and kept when decoding.\n\n"
      "Examples:\n"
      "  printf 'Once upon a time' | ssm tokenize\n"
      "  ssm tokenize ./my-model --json < book.txt\n"
      "  ssm tokenize --decode --tokens 451,602,257");
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace ssm::app
