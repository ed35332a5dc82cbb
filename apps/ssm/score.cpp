// ssm score: how likely the model finds a text or a list of tokens.
#include "ssm/runtime/score.h"

#include <fmt/format.h>

#include <cmath>
#include <numbers>

#include "apps/ssm/commands.h"
#include "apps/ssm/flags.h"
#include "apps/ssm/model_options.h"
#include "apps/ssm/output.h"
#include "apps/ssm/token_list.h"

namespace ssm::app {
namespace {

struct Arguments {
  ModelOptions model;
  std::string tokens, file;
  bool has_tokens = false, per_token = false;
};

struct Totals {
  int64_t tokens = 0;
  size_t bytes = 0;  // of the text; 0 when the tokens were given
  double nll = 0;    // of all tokens but the first, in nats

  double perplexity() const { return tokens > 1 ? std::exp(nll / static_cast<double>(tokens - 1)) : NAN; }
  double bits_per_byte() const {
    return tokens > 1 ? nll / std::numbers::ln2 / static_cast<double>(bytes) : NAN;
  }
};

using Visit = std::function<void(const TokenScore&)>;

Totals score_all(const LoadedModel& model, const std::vector<int32_t>& ids, size_t bytes,
                 const Visit& visit) {
  SSM_CHECK(!ids.empty(), "nothing to score: the text is empty");
  Totals totals{.tokens = std::ssize(ids), .bytes = bytes};
  Progress progress;
  const double start = seconds_now();
  score(model, ids, [&](const TokenScore& token) {
    if (token.position > 0) totals.nll -= static_cast<double>(token.logprob);
    if (visit) visit(token);
    if (token.position % 512 == 511) {
      const auto done = static_cast<double>(token.position + 1);
      progress.show(fmt::format("{} of {} tokens, {:.0f} tok/s, perplexity {:.3f}", token.position + 1,
                                ids.size(), done / (seconds_now() - start),
                                std::exp(totals.nll / (done - 1))));
    }
  });
  return totals;
}

void write_ids(const std::vector<int32_t>& ids) {
  for (size_t i = 0; i < ids.size(); ++i) standard_output().write((i ? "," : "") + std::to_string(ids[i]));
}

std::string totals_json(const Totals& t) {
  return fmt::format("\"tokens\":{},\"nll\":{},\"perplexity\":{},\"bits_per_byte\":{}", t.tokens,
                     json_number(t.nll), json_number(t.perplexity()), json_number(t.bits_per_byte()));
}

// The two arrays belong one behind the other: log-probabilities are written as they come, the four bytes a
// token of the other wait.
Totals write_arrays(const LoadedModel& model, const std::vector<int32_t>& ids, size_t bytes) {
  Output& out = standard_output();
  std::vector<int32_t> argmax;
  argmax.reserve(ids.size());
  write_ids(ids);
  out.write("],\"logprobs\":[");
  const Totals totals = score_all(model, ids, bytes, [&](const TokenScore& token) {
    if (token.position > 0) out.write(",");
    out.write(json_number(token.logprob));  // of the first: null
    argmax.push_back(token.argmax);
  });
  out.write("],\"argmax\":[");
  write_ids(argmax);
  return totals;
}

void write_json(const LoadedModel& model, const std::vector<int32_t>& ids, size_t bytes,
                const Arguments& arguments) {
  Output& out = standard_output();
  if (arguments.has_tokens) {
    out.write("{\"tokens\":[");
    const Totals totals = write_arrays(model, ids, bytes);
    out.write(fmt::format("],\"perplexity\":{}}}\n", json_number(totals.perplexity())));
  } else if (arguments.per_token) {
    out.write("{\"ids\":[");
    const Totals totals = write_arrays(model, ids, bytes);
    out.write(fmt::format("],{}}}\n", totals_json(totals)));
  } else {
    out.write(fmt::format("{{{}}}\n", totals_json(score_all(model, ids, bytes, {}))));
  }
}

void write_text(const LoadedModel& model, const std::vector<int32_t>& ids, size_t bytes,
                const Arguments& arguments) {
  Output& out = standard_output();
  Visit visit;
  if (arguments.per_token) {
    out.write("position      token    logprob  best next\n");
    visit = [&](const TokenScore& t) {
      const std::string logprob = std::isfinite(t.logprob) ? fmt::format("{:.5f}", t.logprob) : "-";
      out.write(fmt::format("{:8} {:10} {:>10} {:10}\n", t.position, ids[static_cast<size_t>(t.position)],
                            logprob, t.argmax));
    };
  }
  const Totals t = score_all(model, ids, bytes, visit);
  out.write(fmt::format("tokens      {}\nnll         {:.4f}\n", t.tokens, t.nll));
  if (t.tokens > 1) out.write(fmt::format("perplexity  {:.4f}\n", t.perplexity()));
  if (t.tokens > 1 && t.bytes > 0) out.write(fmt::format("bits/byte   {:.4f}\n", t.bits_per_byte()));
}

void run(const Arguments& arguments) {
  const LoadedModel model = load(arguments.model);
  std::vector<int32_t> ids;
  size_t bytes = 0;
  if (arguments.has_tokens) {
    ids = read_tokens(arguments.tokens);
    check_usage(!ids.empty(), "--tokens: no id in it");
  } else {
    const text::Tokenizer& tokenizer = model.need_tokenizer();
    check_usage(!arguments.file.empty() || !stdin_is_terminal(),
                "nothing to score: give --file FILE, --tokens LIST, or a text on standard input");
    const std::string text = arguments.file.empty() ? read_stdin() : read_text_file(arguments.file);
    bytes = text.size();
    ids = tokenizer.encode(text);
  }
  (arguments.model.json ? write_json : write_text)(model, ids, bytes, arguments);
}

}  // namespace

void add_score(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* verb = program.add_subcommand("score", "Log-probabilities and perplexity of a text");
  add_model_argument(*verb, arguments->model);
  CLI::Option* tokens =
      verb->add_option("--tokens", arguments->tokens, "Ids, @FILE with ids, or - for standard input")
          ->option_text("LIST");
  verb->add_option("--file", arguments->file, "A text, scored as one sequence; without it standard input")
      ->option_text("FILE")
      ->excludes(tokens);
  verb->add_flag("--per-token", arguments->per_token, "Each token's log-probability too");
  add_adapter_flag(*verb, arguments->model);
  add_quantize_flags(*verb, arguments->model);
  add_model_flags(*verb, arguments->model);
  verb->footer(
      "No token is added. The first token has no log-probability; perplexity is exp of minus the mean of the "
      "others.\n"
      "Memory does not grow with the text, but for the text and its ids.\n\n"
      "Examples:\n"
      "  ssm score --file book.txt\n"
      "  ssm score ./my-model --tokens 1,2,3 --json\n"
      "  printf 'Once upon a time' | ssm score --per-token");
  verb->callback([arguments, tokens] {
    arguments->has_tokens = tokens->count() > 0;
    run(*arguments);
  });
}

}  // namespace ssm::app
