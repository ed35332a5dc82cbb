// ssm bench compare: two models side by side, over batches and over lengths of the text.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "apps/ssm/bench_model.h"
#include "apps/ssm/commands.h"
#include "apps/ssm/flags.h"
#include "apps/ssm/line_chart.h"
#include "apps/ssm/output.h"
#include "ssm/core/atomic_file.h"
#include "ssm/core/parallel.h"
#include "ssm/core/rng.h"
#include "ssm/ops/simd/kernel_target.h"
#include "ssm/runtime/generate.h"
#include "ssm/runtime/stepper.h"

namespace ssm::app {
namespace {

struct Arguments {
  ModelOptions model;
  std::vector<std::string> names;
  std::vector<int64_t> batches{1, 2, 4, 8, 16, 32, 64, 128};
  std::vector<int64_t> contexts{2048, 8192, 32768, 131072, 262144, 524288, 1048576};
  int64_t prompt_length = 100, new_tokens = 100, steps = 8;
  std::string stored = "bf16", svg;
};

// NaN: refused, for lack of memory say.
struct Measured {
  std::string name, weights, stored, compute, device;
  int64_t parameters = 0;
  std::vector<double> throughput;      // new tokens a second, reading the prompts included; for each batch
  std::vector<double> step_seconds;    // of one more token, for each context
  std::vector<double> context_memory;  // bytes that a text of that length keeps
};

double throughput(const LoadedModel& model, const Arguments& a, int64_t batch) {
  Generator generator(model, batch);
  for (const auto& prompt : random_prompts(model, batch, a.prompt_length)) generator.add(prompt);
  const double start = seconds_now();
  generator.run(
      {.sampling = {.temperature = 0}, .max_new_tokens = a.new_tokens, .stop = {}, .ignore_eos = true});
  return static_cast<double>(batch * a.new_tokens) / (seconds_now() - start);
}

// What a text of so many tokens leaves behind, of random numbers: the time of a step does not depend on them.
void fill_with_text(StatePool& pool, int32_t slot, int64_t tokens) {
  pool.reserve(slot, tokens);
  Rng rng(3);
  for (const MixerState& layer : pool.state()) {
    if (!layer.kv) continue;
    const auto [device, dtype] = layer.kv->storage();
    Tensor some = Tensor::empty({layer.kv->page_bytes() / static_cast<int64_t>(size_of(dtype))});
    for (float& x : some.values<float>()) x = 0.1f * rng.normal();
    some = some.to(dtype).to(device);
    for (int64_t page = 0; page * KvCache::kPageTokens < tokens; ++page)
      copy_bytes(layer.kv->page_memory(slot, page), device, some.raw(), device, some.bytes());
    layer.kv->added(slot, tokens);
  }
}

// Of the steps after the first two, which make what is made at first use.
double median_seconds(int64_t steps, const std::function<void()>& step) {
  std::vector<double> seconds;
  for (int64_t i = -2; i < steps; ++i) {
    const double start = seconds_now();
    step();
    if (i >= 0) seconds.push_back(seconds_now() - start);
  }
  return median(seconds);
}

double step_seconds(const LoadedModel& model, const Arguments& a, int64_t context) {
  StatePool pool(*model.model, 1, model.state, model.kv_bytes);
  const int32_t slot = pool.acquire();
  fill_with_text(pool, slot, context);
#ifdef SSM_CUDA
  if (model.device.is_cuda()) {  // as a text is written there
    Stepper stepper(model, pool, Tensor::zeros({pool.rows(), model.model->vocab_size()}, DType::u8, kCuda));
    Stepper::Input input{1, {{.temperature = 0}, slot, context}};
    return median_seconds(a.steps, [&] {
      pool.reserve(slot, 1);
      input.id = stepper.step(std::span(&input, 1))[0];
      ++input.next.position;
    });
  }
#endif
  SequenceRunner runner(*model.model, pool);
  const std::vector<int32_t> id{1};
  return median_seconds(a.steps, [&] {
    const SequenceRunner::Input input{slot, id};
    runner.logits(runner.hidden(std::span(&input, 1))).to(kCpu);
  });
}

// One number, or NaN and a line that says why not.
template <class F>
double measured(Progress& progress, const std::string& what, const F& f) {
  progress.show(what);
  try {
    return f();
  } catch (const Error& e) {
    progress.clear();
    note(fmt::format("{}: {}", what, e.what()));
    return NAN;
  }
}

Measured measure(const Arguments& a, const std::string& name) {
  ModelOptions options = a.model;
  options.model = name;
  Measured m;
  m.name = name;
  const LoadedModel model = open_for_bench(options, a.stored, m.weights);
  m.stored = model.stored_name();
  m.compute = name_of(model.compute);
  m.device = name_of(model.device);
  m.parameters = model.parameters;
  Progress progress;
  for (const int64_t batch : a.batches) {
    m.throughput.push_back(measured(progress, fmt::format("{}, batch {}", name, batch),
                                    [&] { return throughput(model, a, batch); }));
  }
  const StatePool one(*model.model, 1, model.state);
  for (const int64_t context : a.contexts) {
    m.step_seconds.push_back(measured(progress, fmt::format("{}, a text of {} tokens", name, context),
                                      [&] { return step_seconds(model, a, context); }));
    m.context_memory.push_back(static_cast<double>(one.bytes_per_slot()) +
                               static_cast<double>(context) * static_cast<double>(one.kv_bytes_per_token()));
  }
  return m;
}

void print_table(const Arguments& a, const std::vector<Measured>& models) {
  Output& out = standard_output();
  const auto number = [](double x, double factor) -> std::string {
    if (std::isnan(x)) return "-";
    return x * factor < 1000 ? fmt::format("{:.3g}", x * factor) : fmt::format("{:.0f}", x * factor);
  };
  for (const Measured& m : models) {
    out.write(fmt::format("{}: {:.1f} M parameters, {} weights in {}, computed in {} on {}\n", m.name,
                          static_cast<double>(m.parameters) / 1e6, m.weights, m.stored, m.compute, m.device));
  }
  out.write(fmt::format("{} threads, {}; prompt {} tokens, {} new\n\n", num_threads(), kernel_target(),
                        a.prompt_length, a.new_tokens));
  out.write(fmt::format("{:>9}{:>22}{:>22}{:>8}\n", "batch", models[0].name, models[1].name, "ratio"));
  for (size_t i = 0; i < a.batches.size(); ++i) {
    const double x = models[0].throughput[i], y = models[1].throughput[i];
    out.write(fmt::format("{:>9}{:>16} tok/s{:>16} tok/s{:>8}\n", a.batches[i], number(x, 1), number(y, 1),
                          number(x / y, 1)));
  }
  out.write(fmt::format("\n{:>9}{:>25}{:>25}\n", "context", models[0].name, models[1].name));
  for (size_t i = 0; i < a.contexts.size(); ++i) {
    out.write(fmt::format("{:>9}", a.contexts[i]));
    for (const Measured& m : models) {
      out.write(fmt::format("{:>9} ms{:>9} MiB", number(m.step_seconds[i], 1e3),
                            number(m.context_memory[i], 1.0 / (1 << 20))));
    }
    out.write("\n");
  }
}

void print_report(const Arguments& a, const std::vector<Measured>& models) {
  const auto numbers = [](const std::vector<double>& values) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const double x : values) list.push_back(finite_or_null(x));
    return list;
  };
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Measured& m : models) {
    list.push_back({{"model", m.name},
                    {"weights", m.weights},
                    {"stored_dtype", m.stored},
                    {"compute_dtype", m.compute},
                    {"device", m.device},
                    {"parameters", m.parameters},
                    {"tokens_per_second", numbers(m.throughput)},
                    {"step_seconds", numbers(m.step_seconds)},
                    {"context_bytes", numbers(m.context_memory)}});
  }
  print_json({{"threads", num_threads()},
              {"cpu_kernels", kernel_target()},
              {"prompt_tokens", a.prompt_length},
              {"new_tokens", a.new_tokens},
              {"batches", a.batches},
              {"contexts", a.contexts},
              {"models", list}});
}

std::string svg(const Arguments& a, const std::vector<Measured>& models) {
  Chart speed{"Throughput", "batch", "tokens/s", {}},
      time{"Time of one more token", "tokens of text", "ms", {}},
      memory{"Memory of a text", "tokens of text", "MiB", {}};
  const auto line = [](const std::string& name, const std::vector<int64_t>& xs, const std::vector<double>& ys,
                       double factor) {
    ChartLine made{name, {}};
    for (size_t i = 0; i < xs.size(); ++i) {
      if (ys[i] > 0) made.points.emplace_back(static_cast<double>(xs[i]), ys[i] * factor);
    }
    return made;
  };
  for (const Measured& m : models) {
    speed.lines.push_back(line(m.name, a.batches, m.throughput, 1));
    time.lines.push_back(line(m.name, a.contexts, m.step_seconds, 1e3));
    memory.lines.push_back(line(m.name, a.contexts, m.context_memory, 1.0 / (1 << 20)));
  }
  return svg_of({speed, time, memory});
}

void run(Arguments& a) {
  if (!a.svg.empty()) check_writable(a.svg);
  std::sort(a.batches.begin(), a.batches.end());
  std::sort(a.contexts.begin(), a.contexts.end());
  std::vector<Measured> models;
  for (const std::string& name : a.names) models.push_back(measure(a, name));
  if (!a.svg.empty()) write_whole(a.svg, svg(a, models));
  a.model.json ? print_report(a, models) : print_table(a, models);
}

}  // namespace

void add_bench_compare(CLI::App& bench) {
  auto arguments = std::make_shared<Arguments>();
  Arguments& a = *arguments;
  CLI::App* verb = bench.add_subcommand("compare", "Two models, over batches and over lengths of the text");
  verb->add_option("MODELS", a.names, "Two models, or published ones' names")->required()->expected(2);
  const auto list = [&](const char* flag, std::vector<int64_t>& values, const char* what) {
    repeatable(verb->add_option(flag, values, what))
        ->delimiter(',')
        ->transform(integer_between(1, int64_t{1} << 32))
        ->option_text("N,...");
  };
  list("--batches", a.batches, "Sequences at a time; default 1,2,4,...,128");
  list("--contexts", a.contexts, "Tokens that a text has; default 2048 to 1048576");
  const auto count = [&](const char* flag, int64_t& value, const char* text) {
    verb->add_option(flag, value, text)->transform(integer_between(1, int64_t{1} << 32))->option_text("N");
  };
  count("--promptlen", a.prompt_length, "Tokens of each prompt; default 100");
  count("--genlen", a.new_tokens, "Tokens to generate; default 100");
  count("--steps", a.steps, "Steps of which a context's time is the median; default 8");
  verb->add_option("--svg", a.svg, "Draw it into this file")->option_text("FILE");
  add_stored_flag(*verb, a.stored);
  add_quantize_flags(*verb, a.model);
  add_json_flag(*verb, a.model);
  add_machine_flags(*verb, a.model);
  verb->footer(
      "Throughput counts new tokens and the time of the prompts too. A text of a context's length is not "
      "read: its\n"
      "state is filled with random numbers, which take as long. What does not fit into the memory is left "
      "out, with\n"
      "the reason.\n\n"
      "Example:\n"
      "  ssm bench compare mamba-130m pythia-160m --batches 1,8,64 --svg compare.svg");
  verb->callback([arguments, &bench] {
    refuse_arguments(bench, "compare");
    run(*arguments);
  });
}

}  // namespace ssm::app
