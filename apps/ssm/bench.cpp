// ssm bench: how fast a model reads and writes here, and how near that is to what the machine can do.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "apps/ssm/bench_model.h"
#include "apps/ssm/bench_report.h"
#include "apps/ssm/commands.h"
#include "apps/ssm/flags.h"
#include "apps/ssm/machine_limits.h"
#include "apps/ssm/model_options.h"
#include "apps/ssm/output.h"
#include "apps/ssm/resolve_model.h"
#include "apps/ssm/sampling_options.h"
#include "ssm/core/parallel.h"
#include "ssm/load/random_model.h"
#include "ssm/runtime/generate.h"

namespace ssm::app {
namespace {

constexpr double kLongRun = 60;  // seconds: no further repeat is begun after them unless it was asked for

struct Arguments {
  ModelOptions model;
  SamplingOptions sampling{.params = {.temperature = 1, .top_k = 1, .top_p = 1}, .seed = {}};
  std::string model_name, prompt, stored = "bf16";
  int64_t prompt_length = 100, new_tokens = 100, batch = 1;
  int repeats = 0;  // 0: three, or fewer when one is long
};

struct Run {
  double first_token = 0, decode = 0, total = 0;
  std::vector<int64_t> each_second;  // tokens in each whole second from the first token on
};

std::vector<std::vector<int32_t>> make_prompts(const Arguments& arguments, const LoadedModel& model) {
  int64_t length = arguments.prompt_length;
  if (!arguments.prompt.empty() && model.tokenizer) {
    const std::vector<int32_t> ids = model.tokenizer->encode(arguments.prompt);
    return std::vector<std::vector<int32_t>>(static_cast<size_t>(arguments.batch), ids);
  }
  if (!arguments.prompt.empty()) {
    length = std::max<int64_t>(1, static_cast<int64_t>(arguments.prompt.size() + 3) / 4);
    note(fmt::format("no tokenizer: {} random tokens stand for the prompt (four bytes a token)", length));
  }
  return random_prompts(model, arguments.batch, length);
}

Run measure(Generator& generator, const std::vector<std::vector<int32_t>>& prompts,
            const SamplingParams& sampling, int64_t new_tokens) {
  generator.clear();
  for (const auto& prompt : prompts) generator.add(prompt);
  const double start = seconds_now();
  double first = 0;
  std::vector<int64_t> each_second;
  Progress progress;
  int64_t done = 0;
  generator.run({.sampling = sampling, .max_new_tokens = new_tokens, .stop = {}, .ignore_eos = true},
                [&](size_t, int32_t, std::string_view) {
                  const double now = seconds_now();
                  if (first == 0) first = now;
                  each_second.resize(static_cast<size_t>(now - first) + 1);
                  ++each_second.back();
                  progress.show(fmt::format("{} of {} tokens", ++done, new_tokens * std::ssize(prompts)));
                  return true;
                });
  const double end = seconds_now();
  if (!each_second.empty()) each_second.pop_back();  // not whole
  return {first - start, end - first, end - start, std::move(each_second)};
}

int64_t peak_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::strtoll(line.c_str() + 6, nullptr, 10) * 1024;
  }
  return 0;
}

void measure_all(const Arguments& arguments, const LoadedModel& model, BenchReport& report) {
  const auto prompts = make_prompts(arguments, model);
  SamplingParams sampling = arguments.sampling.params;
  sampling.seed = arguments.sampling.seed.value_or(1);
  // Weights are paged in and the threads started before anything counts.
  Generator generator(model, std::ssize(prompts));
  if (model.device.is_cuda()) {  // a card also makes its buffers and captures its step at first use
    measure(generator, prompts, sampling, 2);
  } else {
    measure(generator, {std::vector<int32_t>(prompts[0].begin(), prompts[0].begin() + 1)}, sampling, 2);
  }
  std::vector<double> first, decode, total;
  const int repeats = arguments.repeats > 0 ? arguments.repeats : 3;
  double spent = 0;
  for (int i = 0; i < repeats && (i == 0 || arguments.repeats > 0 || spent < kLongRun); ++i) {
    Run run = measure(generator, prompts, sampling, arguments.new_tokens);
    first.push_back(run.first_token);
    decode.push_back(run.decode);
    total.push_back(run.total);
    report.each_second = std::move(run.each_second);
    spent += run.total;
  }
  report.repeats = std::ssize(total);
  if (report.repeats < repeats) note("one run is long: fewer repeats than 3 (--repeats N asks for more)");
  report.prompt_tokens = std::ssize(prompts[0]);
  report.first_token = median(first);
  report.decode = median(decode);
  report.total = median(total);
  report.peak_memory = peak_memory();  // before the limits' own buffers
  if (model.device.is_cuda()) report.card_memory = static_cast<int64_t>(memory_of(model.device).peak);
}

void run(Arguments& arguments) {
  if (!arguments.model_name.empty()) {
    check_usage(arguments.model.model.empty(), "two models: {} and --model-name {}", arguments.model.model,
                arguments.model_name);
    arguments.model.model = arguments.model_name;
  }
  BenchReport report;
  const double start = seconds_now();
  const std::string& name = arguments.model.model;
  report.model = name.empty() ? kBundledModel : name;
  LoadedModel model = open_for_bench(arguments.model, arguments.stored, report.weights);
  report.load = seconds_now() - start;
  report.stored_dtype = model.stored_name();
  report.compute_dtype = name_of(model.compute);
  report.parameters = model.parameters;
  report.batch = arguments.batch;
  report.new_tokens = arguments.new_tokens;
  report.threads = num_threads();
  report.cost = cost_of(model);
  measure_all(arguments, model, report);
  report.device = name_of(model.device);
  report.card = description_of(model.device);
  report.state_dtype = name_of(model.state);
  report.read_bandwidth = measure_bandwidth(model.device);
  report.gemm_rate = measure_gemm_rate(model.device, model.stored, model.compute);
  report.print(arguments.model.json);
}

void add_bench_flags(CLI::App& verb, Arguments& a) {
  verb.add_option("--model-name", a.model_name, "The same as a flag")->option_text("NAME");
  verb.add_option("--prompt", a.prompt, "Instead of random tokens")->option_text("TEXT");
  auto count = [&](const char* flag, int64_t& value, const char* text) {
    verb.add_option(flag, value, text)->transform(integer_between(1, int64_t{1} << 32))->option_text("N");
  };
  count("--promptlen", a.prompt_length, "Tokens of each prompt; default 100");
  count("--genlen", a.new_tokens, "Tokens to generate; default 100");
  count("--batch", a.batch, "Sequences at a time; default 1");
  verb.add_option("--repeats", a.repeats, "Medians are of these; default 3, fewer when one takes minutes")
      ->transform(integer_between(1, 1000))
      ->option_text("N");
  add_stored_flag(verb, a.stored);
}

}  // namespace

void add_bench(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* verb = program.add_subcommand("bench", "Speed here, beside the machine's limits");
  verb->add_option("MODEL", arguments->model.model,
                   "A model, or a published one's name: random weights of its shape when it is not here");
  add_bench_flags(*verb, *arguments);
  add_sampling_flags(*verb, arguments->sampling);
  add_quantize_flags(*verb, arguments->model);
  add_model_flags(*verb, arguments->model);
  verb->footer(
      fmt::format("Limits are measured in the same run: read bandwidth over 1 GiB with all threads, and the "
                  "GEMM rate of a product\n"
                  "of 512 x 2048 x 2048. Prompt limit: GEMM rate / (2 x parameters in the layers' matrices). "
                  "Decode limit: the time\n"
                  "to read the weights once and to read and write each sequence's state, or that of its "
                  "products if longer.\n"
                  "A model that fits into the caches can pass its decode limit.\n"
                  "Greedy unless --temperature, --top-p or --min-p is given. Shapes:\n  {}\n\n"
                  "Examples:\n"
                  "  ssm bench\n"
                  "  ssm bench mamba2-130m --promptlen 512 --batch 8 --json\n"
                  "  ssm bench --model-name state-spaces/mamba-2.8b --prompt \"My cat wrote\" --topp 0.9 "
                  "--temperature 0.7",
                  fmt::join(named_shapes(), ", ")));
  add_bench_ops(*verb);
  add_bench_compare(*verb);
  verb->callback([arguments, verb] {
    if (!verb->get_subcommands().empty()) return;  // it has run
    const bool draws = verb->count("--temperature") + verb->count("--top-p") + verb->count("--min-p") > 0;
    if (draws && verb->count("--top-k") == 0) arguments->sampling.params.top_k = 0;
    run(*arguments);
  });
}

}  // namespace ssm::app
