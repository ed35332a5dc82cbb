#include "task.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "ssm/core/parallel.h"
#include "ssm/core/rng.h"
#include "ssm/io/config.h"
#include "ssm/models/registry.h"
#include "ssm/ops/elementwise/elementwise.h"
#include "ssm/ops/sampling/sampling.h"
#include "ssm/train/checkpoint.h"
#include "ssm/train/init.h"

namespace paper {
namespace {

using ssm::Tensor;
using Json = nlohmann::ordered_json;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

nlohmann::json config_of(const Options& o, const Task& task) {
  nlohmann::json fields{
      {"model_type", o.family},        {"vocab_size", task.vocab}, {"hidden_size", o.width},
      {"num_hidden_layers", o.layers}, {"state_size", o.state},    {"tie_word_embeddings", task.tied},
      {"eos_token_id", nullptr},       {"bos_token_id", nullptr},  {"pad_token_id", nullptr}};
  if (o.family == "mamba2") {
    const int64_t head = std::min<int64_t>(64, o.width / 2);
    fields.update({{"head_dim", head}, {"num_heads", 2 * o.width / head}, {"n_groups", 1}});
  }
  return ssm::io::read_config(fields.dump(), "the task's model");
}

ssm::LoadedModel make_model(const Options& o, const Task& task) {
  ssm::set_num_threads(o.threads);
  ssm::LoadOptions options;
  const std::string why = o.device == "cpu" ? "cpu" : ssm::why_unavailable(ssm::kCuda);
  SSM_CHECK(why.empty() || o.device != "cuda", "--device cuda: {}", why);
  if (why.empty()) options.device = ssm::kCuda;
  options.compute = ssm::dtype_from_name(o.dtype);
  SSM_CHECK(options.device.is_cuda() || options.compute == ssm::DType::f32,
            "--dtype {}: on a CPU training is in f32", o.dtype);
  options.parameters_stay = true;
  ssm::LoadedModel loaded;
  loaded.layout = "transformers";
  loaded.config = config_of(o, task);
  ssm::set_execution(loaded, options);
  loaded.model = ssm::make_causal_lm(loaded.config, ssm::precision_of(loaded));
  ssm::train::initialise(*loaded.model, loaded.config, ssm::train::InitScheme::reference, o.seed);
  return loaded;
}

ssm::train::TrainerOptions trainer_options(const Options& o) {
  ssm::train::TrainerOptions options;
  options.schedule = {
      .kind = ssm::train::schedule_kind(o.schedule), .lr = o.lr, .min_lr = 0, .warmup = 0, .steps = o.steps};
  options.weight_decay = o.weight_decay;
  options.beta2 = o.beta2;
  options.seed = o.seed;
  return options;
}

void print(const Json& line) {
  fmt::print("{}\n", line.dump());
  std::fflush(stdout);
}

}  // namespace

void add_options(CLI::App& program, Options& o) {
  program.add_option("--out", o.out, "Folder of the run; what is there is gone on with")->required();
  program.add_option("--family", o.family, "mamba or mamba2")->check(CLI::IsMember({"mamba", "mamba2"}));
  program.add_option("--device", o.device, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  program.add_option("--dtype", o.dtype, "Of matrix products: f32, on a card also bf16")
      ->check(CLI::IsMember({"f32", "bf16"}));
  program.add_option("--steps", o.steps, "Optimiser steps in all")->check(CLI::PositiveNumber);
  program.add_option("--minutes", o.minutes, "Stop after so long, and go on when called again; 0: never");
  program.add_option("--stop-at", o.stop_at, "Accuracy on the tests at which it is done");
  program.add_option("--batch", o.rows, "Sequences a step")->check(CLI::PositiveNumber);
  program.add_option("--width", o.width, "Of the model")->check(CLI::PositiveNumber);
  program.add_option("--layers", o.layers, "")->check(CLI::PositiveNumber);
  program.add_option("--state", o.state, "State size")->check(CLI::PositiveNumber);
  program.add_option("--lr", o.lr, "Learning rate")->check(CLI::PositiveNumber);
  program.add_option("--schedule", o.schedule, "constant, cosine or linear, down to 0")
      ->check(CLI::IsMember({"constant", "cosine", "linear"}));
  program.add_option("--weight-decay", o.weight_decay, "Of AdamW")->check(CLI::NonNegativeNumber);
  program.add_option("--tests", o.tests, "Sequences that the accuracy is measured on")
      ->check(CLI::PositiveNumber);
  program.add_option("--evaluate-every", o.evaluate_every, "Steps")->check(CLI::PositiveNumber);
  program.add_option("--save-every", o.save_every, "Steps")->check(CLI::PositiveNumber);
  program.add_option("--log-every", o.log_every, "Steps")->check(CLI::PositiveNumber);
  program.add_option("--seed", o.seed, "Of the model and the data");
  program.add_option("--threads", o.threads, "CPU threads");
}

uint64_t stream(std::string_view what, int64_t i) {
  return ssm::stream_of(what) + static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15u;
}

Study::Study(const Options& options, const Task& task)
    : options_(options), task_(task), loaded_(make_model(options, task)) {
  trainer_ = std::make_unique<ssm::train::Trainer>(*loaded_.model, task.vocab, loaded_.device,
                                                   loaded_.compute, trainer_options(options));
  const auto checkpoint = ssm::train::newest_checkpoint(options_.out / "checkpoints");
  if (!checkpoint) return;
  const nlohmann::json run = ssm::train::restore_checkpoint(*checkpoint, *trainer_).run;
  seconds_ = run.value("seconds", 0.0);
  accuracy_ = run.value("accuracy", -1.0);
}

ssm::train::Batch Study::batch_of(const std::function<Sequence(int64_t)>& sequences, int64_t begin,
                                  int64_t end) const {
  std::vector<Sequence> all(static_cast<size_t>(end - begin));
  ssm::parallel_for(end - begin, 1, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) all[static_cast<size_t>(i)] = sequences(begin + i);
  });
  ssm::train::Batch batch;
  for (const Sequence& s : all) {
    batch.ids.insert(batch.ids.end(), s.ids.begin(), s.ids.end());
    batch.targets.insert(batch.targets.end(), s.targets.begin(), s.targets.end());
    batch.streams.push_back(static_cast<int32_t>(batch.lengths.size()));
    batch.lengths.push_back(std::ssize(s.ids));
  }
  batch.continues.assign(all.size(), 0);
  batch.carries_on.assign(all.size(), 0);
  batch.learned = std::ssize(batch.targets) - std::count(batch.targets.begin(), batch.targets.end(), -1);
  return batch;
}

bool Study::run() {
  const double begin = now(), before = seconds_;
  const auto late = [&] { return options_.minutes > 0 && now() - begin > 60 * options_.minutes; };
  while (!over() && !late()) {
    const int64_t first = trainer_->steps_done() * options_.rows;
    const ssm::train::Batch batch = batch_of(task_.train, first, first + options_.rows);
    loss_ = trainer_->step({&batch, 1}).loss;
    seconds_ = before + now() - begin;
    const int64_t done = trainer_->steps_done();
    if (done % options_.evaluate_every == 0) {
      evaluate();
    } else if (done % options_.log_every == 0) {
      print({{"step", done}, {"loss", loss_}, {"seconds", seconds_}});
    }
    if (!over() && done % options_.save_every == 0) save();
  }
  if (over() && accuracy_ < options_.stop_at && trainer_->steps_done() % options_.evaluate_every != 0)
    evaluate();
  save();
  print({{"step", trainer_->steps_done()},
         {"over", over()},
         {"accuracy", accuracy_ < 0 ? Json() : Json(accuracy_)},
         {"parameters", parameters()},
         {"seconds", seconds_}});
  return over();
}

void Study::evaluate() {
  accuracy_ = accuracy(task_.test, options_.tests);
  print({{"step", trainer_->steps_done()}, {"loss", loss_}, {"accuracy", accuracy_}, {"seconds", seconds_}});
}

void Study::save() {
  ssm::train::save_checkpoint(options_.out / "checkpoints", *trainer_, loaded_,
                              {.steps = trainer_->steps_done(),
                               .position = nlohmann::json::object(),
                               .run = {{"seconds", seconds_}, {"accuracy", accuracy_}}},
                              2);
}

double Study::accuracy(const std::function<Sequence(int64_t)>& test, int64_t count) {
  constexpr size_t kRows = 1024;  // of logits at a time
  ssm::CausalLm& model = *loaded_.model;
  model.prepare();
  int64_t right = 0, asked = 0;
  for (int64_t begin = 0; begin < count; begin += options_.rows) {
    const ssm::train::Batch batch = batch_of(test, begin, std::min(count, begin + options_.rows));
    const Tensor ids = Tensor::from_values<int32_t>(batch.ids, {std::ssize(batch.ids)}).to(loaded_.device);
    const Tensor hidden = model.hidden(ids, ssm::SequenceBatch(batch.lengths, batch.streams), {});
    std::vector<int32_t> places, targets;  // of the tokens that are asked for
    for (size_t t = 0; t < batch.targets.size(); ++t) {
      if (batch.targets[t] < 0) continue;
      places.push_back(static_cast<int32_t>(t));
      targets.push_back(batch.targets[t]);
    }
    const auto count_of = [&](size_t at) { return std::min<size_t>(kRows, places.size() - at); };
    for (size_t at = 0; at < places.size(); at += kRows) {
      const auto some = std::span(places).subspan(at, count_of(at));
      const Tensor rows = Tensor::from_values<int32_t>(some, {std::ssize(some)}).to(loaded_.device);
      const std::vector<ssm::SamplingParams> greedy(some.size(), {.temperature = 0});
      const std::vector<int64_t> positions(some.size(), 0);
      const Tensor said =
          ssm::sample(model.logits(ssm::take_rows(hidden, rows)), task_.vocab, greedy, {}, {}, positions)
              .to(ssm::kCpu);
      for (size_t i = 0; i < some.size(); ++i) right += said.values<int32_t>()[i] == targets[at + i];
      asked += std::ssize(some);
    }
  }
  return static_cast<double>(right) / static_cast<double>(std::max<int64_t>(asked, 1));
}

int run_program(int argc, char** argv, const std::string& description, Options& options,
                const std::function<void(CLI::App&)>& add_flags, const std::function<void()>& body) {
  CLI::App program(description);
  add_options(program, options);
  add_flags(program);
  try {
    program.parse(argc, argv);
    body();
  } catch (const CLI::ParseError& e) {
    return program.exit(e);
  } catch (const std::exception& e) {
    fmt::print(stderr, "{}: {}\n", argv[0], e.what());
    return 1;
  }
  return 0;
}

}  // namespace paper
