// ssm generate: prompts to continuations.
#include "ssm/runtime/generate.h"

#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "apps/ssm/commands.h"
#include "apps/ssm/flags.h"
#include "apps/ssm/interrupt.h"
#include "apps/ssm/model_options.h"
#include "apps/ssm/output.h"
#include "apps/ssm/resolve_model.h"
#include "apps/ssm/sampling_options.h"
#include "apps/ssm/token_list.h"
#include "ssm/core/atomic_file.h"
#include "ssm/load/chat.h"

namespace ssm::app {
namespace {

struct Arguments {
  ModelOptions model;
  SamplingOptions sampling;
  std::string first, second;  // the positional ones: MODEL, or prompt, or both
  std::vector<std::string> prompts, stop;
  std::string prompts_file, tokens, save_state, load_state;
  int64_t max_new_tokens = 256;
  bool ignore_eos = false, verbose = false;
  bool has_first = false, has_second = false, has_tokens = false;  // an empty argument is one too
};

struct Prompt {
  std::string label;
  std::vector<int32_t> ids;
};

// Sorts the positional arguments into the model and the prompts; text prompts from wherever they come.
std::vector<std::string> text_prompts(Arguments& a) {
  std::vector<std::string> prompts = a.prompts;
  const bool elsewhere = !prompts.empty() || !a.prompts_file.empty() || a.has_tokens;
  if (a.has_second) {
    check_usage(!elsewhere, "two prompts: \"{}\" and the one of a flag", a.second);
    prompts.push_back(a.second);
    a.model.model = a.first;
  } else if (elsewhere || !a.has_first || names_model(a.first)) {
    a.model.model = a.first;
  } else {
    prompts.push_back(a.first);
  }
  if (!a.prompts_file.empty()) {
    const std::string text = read_text_file(a.prompts_file);
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      if (end > begin) prompts.push_back(text.substr(begin, end - begin));
      begin = end + 1;
    }
    if (prompts.empty()) fail("{}: holds no prompt", a.prompts_file);
  }
  if (prompts.empty() && !a.has_tokens && !stdin_is_terminal()) {
    std::string text = read_stdin();
    if (text.ends_with('\n')) text.pop_back();  // echo's
    if (!text.empty()) prompts.push_back(text);
  }
  check_usage(!prompts.empty() || a.has_tokens || !a.load_state.empty(),
              "no prompt: give one as an argument, with --prompt or --tokens, or on standard input");
  check_usage(prompts.size() <= 1 || (a.save_state.empty() && a.load_state.empty()),
              "--save-state and --load-state go with one prompt, not with {}", prompts.size());
  return prompts;
}

std::vector<Prompt> read_prompts(const std::vector<std::string>& texts, const LoadedModel& model,
                                 const Arguments& a) {
  std::vector<Prompt> prompts;
  if (a.has_tokens) {
    prompts.push_back({"tokens", read_tokens(a.tokens)});
    check_usage(!prompts[0].ids.empty() || !a.load_state.empty(), "--tokens: no id in it");
  } else {
    const bool bos = a.load_state.empty() && begins_with_bos(model);
    for (const std::string& text : texts) {
      Prompt prompt{text, model.need_tokenizer().encode(text)};
      if (bos) prompt.ids.insert(prompt.ids.begin(), *model.tokenizer->bos());
      prompts.push_back(std::move(prompt));
    }
  }
  if (prompts.empty() && !a.load_state.empty()) prompts.push_back({"state", {}});
  return prompts;
}

nlohmann::ordered_json to_json(const Generated& result, bool has_text) {
  nlohmann::ordered_json object{{"tokens", result.ids}};
  if (has_text) object["text"] = result.text;
  object["stop_reason"] = name_of(result.reason);
  return object;
}

// One text as it grows.
class Streamer {
 public:
  explicit Streamer(bool has_text) : has_text_(has_text) {}

  void show(int32_t id, std::string_view text) {
    if (has_text_) {
      add(text);
    } else if (id >= 0) {
      add((shown_ ? "," : "") + std::to_string(id));
    }
  }
  void finish(const Generated& result) {
    if (has_text_ && result.text.size() > shown_) add(std::string_view(result.text).substr(shown_));
    standard_output().write("\n");
  }

 private:
  void add(std::string_view text) {
    shown_ += text.size();
    standard_output().write(text);
    if (!text.empty()) standard_output().flush();
  }

  bool has_text_;
  size_t shown_ = 0;
};

void print_results(const std::vector<Generated>& results, const std::vector<Prompt>& prompts, bool has_text,
                   bool json) {
  if (json && results.size() == 1) return print_json(to_json(results[0], has_text));
  if (json) {
    nlohmann::ordered_json all = nlohmann::ordered_json::array();
    for (const Generated& result : results) all.push_back(to_json(result, has_text));
    return print_json({{"results", all}});
  }
  for (size_t i = 0; i < results.size(); ++i) {
    standard_output().write(fmt::format("[{}] {}\n", i + 1, prompts[i].label));
    standard_output().write(has_text ? results[i].text : fmt::format("{}", fmt::join(results[i].ids, ",")));
    standard_output().write("\n");
  }
}

struct Timing {
  double start = 0, first_token = 0, end = 0;
};

void report(const Timing& t, const std::vector<Prompt>& prompts, const std::vector<Generated>& results) {
  size_t read = 0, written = 0;
  for (const Prompt& prompt : prompts) read += prompt.ids.size();
  for (const Generated& result : results) written += result.ids.size();
  if (written == 0) return;
  const double prompt_time = t.first_token - t.start, decode_time = t.end - t.first_token;
  std::string line = fmt::format("ssm: prompt {} tokens in {:.3f} s ({:.1f} tok/s)", read, prompt_time,
                                 static_cast<double>(read) / std::max(prompt_time, 1e-9));
  const size_t steps = written - results.size();  // the first tokens belong to the prompt
  if (written > results.size() && decode_time > 0) {
    line += fmt::format(", {} more in {:.3f} s ({:.1f} tok/s)", steps, decode_time,
                        static_cast<double>(steps) / decode_time);
  }
  fmt::print(stderr, "{}\n", line);
}

void run(Arguments& arguments) {
  if (!arguments.save_state.empty()) check_writable(arguments.save_state);
  const std::vector<std::string> texts = text_prompts(arguments);
  const LoadedModel model = load(arguments.model);
  const std::vector<Prompt> prompts = read_prompts(texts, model, arguments);
  const bool has_text = model.tokenizer != nullptr, stream = prompts.size() == 1 && !arguments.model.json;
  const bool random_seed = arguments.sampling.draws() && !arguments.sampling.seed;
  const GenerateOptions options{.sampling = arguments.sampling.with_seed(),
                                .max_new_tokens = arguments.max_new_tokens,
                                .stop = arguments.stop,
                                .ignore_eos = arguments.ignore_eos};
  Generator generator(model, std::ssize(prompts));
  for (const Prompt& prompt : prompts) {
    arguments.load_state.empty() ? generator.add(prompt.ids)
                                 : generator.add(prompt.ids, arguments.load_state);
  }
  Streamer streamer(has_text);
  InterruptScope interrupt;
  Progress line;
  Timing timing{.start = seconds_now()};
  const std::vector<Generated> results = generator.run(
      options,
      [&](size_t, int32_t id, std::string_view text) {
        if (timing.first_token == 0) timing.first_token = seconds_now();
        line.clear();
        if (stream) streamer.show(id, text);
        return !interrupt.requested();
      },
      [&](int64_t done, int64_t all) { line.show_share("reading", done, all); });
  timing.end = seconds_now();
  if (!arguments.save_state.empty()) generator.save(0, arguments.save_state);
  stream ? streamer.finish(results[0]) : print_results(results, prompts, has_text, arguments.model.json);
  standard_output().flush();
  if (random_seed) fmt::print(stderr, "ssm: seed {}\n", options.sampling.seed);
  if (arguments.verbose || stderr_is_terminal()) report(timing, prompts, results);
}

}  // namespace

void add_generate(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  Arguments& a = *arguments;
  CLI::App* verb = program.add_subcommand("generate", "Continue a text");
  verb->add_option("MODEL", a.first, fmt::format("{}; absent: the bundled model", kModelHelp));
  verb->add_option("PROMPT", a.second, "The text to continue; without it standard input");
  CLI::Option* prompt =
      repeatable(verb->add_option("--prompt", a.prompts, "The same as a flag; several make a batch"))
          ->option_text("TEXT");
  CLI::Option* file = verb->add_option("--prompts-file", a.prompts_file, "One prompt a line, as a batch")
                          ->option_text("FILE")
                          ->excludes(prompt);
  verb->add_option("--tokens", a.tokens, "The prompt as ids: a list, @FILE, or - for standard input")
      ->option_text("LIST")
      ->excludes(prompt)
      ->excludes(file);
  verb->add_option("-n,--max-new-tokens", a.max_new_tokens, "-1: no limit; default 256")
      ->transform(integer_between(-1, std::numeric_limits<int64_t>::max()))
      ->option_text("N");
  add_sampling_flags(*verb, a.sampling);
  repeatable(verb->add_option("--stop", a.stop, "End before this text; repeatable"))
      ->check([](const std::string& text) { return text.empty() ? "the text is empty" : ""; })
      ->option_text("TEXT");
  verb->add_flag("--ignore-eos", a.ignore_eos, "Go on after an end token");
  verb->add_option("--save-state", a.save_state, "Write what was read and written, to go on later")
      ->option_text("FILE");
  verb->add_option("--load-state", a.load_state, "Go on from such a file; the prompt may be absent")
      ->option_text("FILE");
  verb->add_flag("-v,--verbose", a.verbose, "Print times on stderr, also when it is no terminal");
  add_adapter_flag(*verb, a.model);
  add_quantize_flags(*verb, a.model);
  add_model_flags(*verb, a.model);
  verb->footer(
      "One argument alone is a MODEL if it is a folder, or a word with a slash (a path or owner/name) or a "
      "published\n"
      "model's name, or if a flag gives the prompt; otherwise it is the prompt. A final newline of standard "
      "input is\n"
      "not part of the prompt. Only the new text is printed. Ctrl-C ends the text cleanly, and --save-state "
      "is kept.\n\n"
      "Examples:\n"
      "  ssm generate \"Once upon a time\"\n"
      "  ssm generate ./my-model \"The capital of France is\" --temperature 0 --max-new-tokens 20\n"
      "  ssm generate \"Once upon a time\" --save-state tale.state && ssm generate --load-state tale.state < "
      "/dev/null\n"
      "  ssm generate ./my-model --tokens 1,2,3 --temperature 0 --json");
  verb->callback([arguments, verb] {
    arguments->has_first = verb->count("MODEL") > 0;
    arguments->has_second = verb->count("PROMPT") > 0;
    arguments->has_tokens = verb->count("--tokens") > 0;
    run(*arguments);
  });
}

}  // namespace ssm::app
