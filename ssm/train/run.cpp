#include "ssm/train/run.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>

#include "ssm/core/atomic_file.h"
#include "ssm/core/log.h"
#include "ssm/load/chat.h"
#include "ssm/load/save_model.h"
#include "ssm/train/adapter.h"
#include "ssm/train/checkpoint.h"
#include "ssm/train/report.h"

namespace ssm::train {
namespace {

namespace fs = std::filesystem;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class Run {
 public:
  Run(const LoadedModel& loaded, Trainer& trainer, const DocumentSet& documents,
      const std::optional<DocumentSet>& held_out, const RunOptions& options, const RunEvents& events)
      : loaded_(loaded),
        trainer_(trainer),
        held_out_(held_out),
        options_(options),
        events_(events),
        batches_(documents, options.batches),
        start_(now()) {}

  RunResult go() {
    if (options_.resume) resume();
    MetricsLog log(options_.out / "metrics.jsonl", options_.about, trainer_.steps_done());
    EventLog event_log(options_.events.empty() ? options_.out / "events" : options_.events,
                       trainer_.steps_done());
    while (trainer_.steps_done() < options_.steps && !stopped()) {
      Metrics metrics = step();
      const int64_t done = trainer_.steps_done();
      const bool last = done == options_.steps;
      if (held_out_ && (last || due(options_.validate_every))) {
        metrics.validation_loss = result_.validation_loss =
            validation_loss(trainer_, *held_out_, options_.batches, options_.validate_tokens);
      }
      if (last || metrics.validation_loss || due(options_.log_every)) {
        log.write(metrics);
        event_log.write(metrics);
      }
      if (events_.step) events_.step(metrics, seconds_left());
      if (!last && due(options_.save_every)) save(false);
    }
    result_.steps = trainer_.steps_done();
    result_.finished = result_.steps >= options_.steps;
    save(true);
    if (result_.finished) write_result();
    write_report(options_.out / "metrics.jsonl", options_.out / "report.html");
    return result_;
  }

 private:
  bool due(int64_t every) const { return every > 0 && trainer_.steps_done() % every == 0; }
  bool stopped() const { return events_.stop && events_.stop(); }
  double seconds() const { return seconds_before_ + now() - start_; }
  double seconds_left() const {
    const int64_t done = trainer_.steps_done() - first_step_;
    return (now() - start_) / static_cast<double>(done) *
           static_cast<double>(options_.steps - trainer_.steps_done());
  }

  void resume() {
    const std::optional<fs::path> checkpoint = newest_checkpoint(checkpoints());
    if (!checkpoint) return;
    const CheckpointInfo info = restore_checkpoint(*checkpoint, trainer_);
    check_same_run(info);
    const std::string name = (*checkpoint / "training.json").string();
    batches_.seek(BatchPosition::from_json(info.position, name));
    position_ = batches_.position();
    tokens_ = info.run.value("tokens", int64_t{0});
    seconds_before_ = info.run.value("seconds", 0.0);
    first_step_ = trainer_.steps_done();
  }

  // What decides which tokens a step reads, by the names of the options.
  nlohmann::json batch_options() const {
    constexpr std::array kModes{"packed", "stream", "documents"};
    const BatchOptions& b = options_.batches;
    return {{"mode", kModes[static_cast<size_t>(b.mode)]},
            {"batch", b.rows},
            {"length", b.length},
            {"seed", b.seed},
            {"state-over-documents", !b.reset_at_documents}};
  }

  void check_same_run(const CheckpointInfo& info) const {
    const nlohmann::json now = batch_options(), then = info.run.value("batches", nlohmann::json::object());
    for (const auto& [name, value] : now.items()) {
      SSM_CHECK(!then.contains(name) || then.at(name) == value,
                "{}: cannot go on with {} {}: this run was begun with {}", options_.out.string(), name,
                value.dump(), then.at(name).dump());
    }
    SSM_CHECK(info.position.value("data", nlohmann::json()) == position_.to_json().at("data"),
              "{}: cannot go on: this run was begun with other documents, or another tokenizer, batch or "
              "length",
              options_.out.string());
  }

  // A step's batches; those in which nothing is to be learned are passed over.
  std::vector<Batch> next_batches() {
    std::vector<Batch> batches;
    for (int64_t empty = 0; std::ssize(batches) < options_.accumulate;) {
      Batch batch;
      SSM_CHECK(batches_.next(batch), "the data has ended");
      if (batch.learned > 0) {
        batches.push_back(std::move(batch));
      } else {
        SSM_CHECK(++empty < 1000, "no token of 1000 batches is to be learned");
      }
    }
    return batches;
  }

  Metrics step() {
    const double begin = now();
    if (next_.empty()) read_next();
    position_ = next_position_;
    trainer_.start(next_);
    next_.clear();
    // While the device is at work; what a checkpoint remembers is where this step ended.
    if (trainer_.steps_done() + 1 < options_.steps) read_next();
    Metrics metrics;
    metrics.memory =
        loaded_.device.is_cuda() ? static_cast<int64_t>(memory_of(loaded_.device).peak) : resident_memory();
    const StepResult result = trainer_.finish();
    tokens_ += result.inputs;
    count_rate(static_cast<double>(result.inputs) / (now() - begin));
    result_.loss = result.loss;
    metrics.step = trainer_.steps_done();
    metrics.loss = result.loss;
    metrics.lr = result.lr;
    metrics.grad_norm = result.grad_norm;
    metrics.tokens = tokens_;
    metrics.tokens_per_second = rate_;
    metrics.seconds = seconds();
    return metrics;
  }

  void read_next() {
    next_ = next_batches();
    next_position_ = batches_.position();
  }

  // A mean over some twenty steps, without the first, which finds its memory and its kernels.
  void count_rate(double rate) {
    const int64_t counted = trainer_.steps_done() - first_step_ - 1;
    rate_ = counted <= 1 ? rate : rate_ + (rate - rate_) * std::max(0.05, 1.0 / static_cast<double>(counted));
  }

  void save(bool must) {
    const CheckpointInfo info{
        .steps = trainer_.steps_done(),
        .position = position_.to_json(),
        .run = {{"tokens", tokens_}, {"seconds", seconds()}, {"batches", batch_options()}}};
    try {
      save_checkpoint(checkpoints(), trainer_, loaded_, info, options_.keep,
                      options_.adapter ? &*options_.adapter : nullptr);
    } catch (const Error& e) {
      if (must) throw;
      log(LogLevel::warning, fmt::format("no checkpoint at step {}: {}", info.steps, e.what()));
    }
  }

  void write_result() {
    const bool averaged = trainer_.options().average > 0;
    if (options_.adapter) {
      io::write_adapter(options_.out, *options_.adapter,
                        adapter_tensors(trainer_, options_.stored, averaged));
    } else {
      save_model(options_.out, *loaded_.model, loaded_.config, options_.stored, loaded_.folder,
                 [&](const std::string& name) { return trainer_.parameters().value_of(name, averaged); });
      save_bos_setting(loaded_, options_.out);
    }
    if (!options_.tokenizer_json.empty())
      write_whole(options_.out / "tokenizer.json", options_.tokenizer_json);
    save_chat_template(loaded_, options_.out);
  }

  fs::path checkpoints() const { return options_.out / "checkpoints"; }

  const LoadedModel& loaded_;
  Trainer& trainer_;
  const std::optional<DocumentSet>& held_out_;
  const RunOptions& options_;
  const RunEvents& events_;
  Batches batches_;
  std::vector<Batch> next_;
  BatchPosition position_ = batches_.position(),
                next_position_;  // behind this step's batches, and the next's
  RunResult result_;
  double start_, seconds_before_ = 0, rate_ = 0;
  int64_t first_step_ = 0, tokens_ = 0;
};

}  // namespace

void RunOptions::check() const {
  SSM_CHECK(!out.empty(), "no folder to write to");
  SSM_CHECK(steps >= 1, "{} steps, expected 1 or more", steps);
  SSM_CHECK(accumulate >= 1, "accumulate is {}, expected 1 or more", accumulate);
  SSM_CHECK(log_every >= 1, "log-every is {}, expected 1 or more", log_every);
  SSM_CHECK(validate_every >= 0 && save_every >= 0, "a negative number of steps");
  SSM_CHECK(keep >= 1, "keep is {}, expected 1 or more", keep);
}

int64_t steps_of_epochs(const DocumentSet& documents, const BatchOptions& batches, int64_t accumulate,
                        double epochs) {
  const auto steps = static_cast<double>(Batches(documents, batches).steps_per_epoch());
  return std::max<int64_t>(1, std::llround(std::ceil(steps * epochs / static_cast<double>(accumulate))));
}

RunResult run_training(const LoadedModel& loaded, Trainer& trainer, const DocumentSet& documents,
                       const std::optional<DocumentSet>& held_out, const RunOptions& options,
                       const RunEvents& events) {
  options.check();
  std::error_code error;
  fs::create_directories(options.out, error);
  SSM_CHECK(!error, "{}: cannot create: {}", options.out.string(), error.message());
  SSM_CHECK(options.resume || !fs::exists(options.out / "checkpoints", error),
            "{}: holds a run already; go on with it (--resume), or name another folder",
            options.out.string());
  return Run(loaded, trainer, documents, held_out, options, events).go();
}

void for_each_held_out(const DocumentSet& documents, BatchOptions batches, int64_t most_tokens,
                       const std::function<void(const Batch& batch)>& f) {
  batches.epochs = 1;
  batches.shuffle = false;
  if (batches.mode == BatchMode::stream) batches.mode = BatchMode::packed;
  Batches all(documents, batches);
  int64_t inputs = 0;
  for (Batch batch; inputs < most_tokens && all.next(batch);) {
    f(batch);
    inputs += std::ssize(batch.ids);
  }
}

double validation_loss(Trainer& trainer, const DocumentSet& documents, const BatchOptions& batches,
                       int64_t most_tokens) {
  double nll = 0;
  int64_t targets = 0;
  for_each_held_out(documents, batches, most_tokens, [&](const Batch& batch) {
    nll += trainer.evaluate(batch);
    targets += batch.learned;
  });
  return targets > 0 ? nll / static_cast<double>(targets) : NAN;
}

}  // namespace ssm::train
