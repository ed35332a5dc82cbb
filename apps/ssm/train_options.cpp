#include "apps/ssm/train_options.h"

#include <fmt/format.h>

#include <cmath>

#include "apps/ssm/flags.h"
#include "apps/ssm/interrupt.h"
#include "apps/ssm/output.h"
#include "ssm/train/dataset.h"

namespace ssm::app {
namespace {

namespace fs = std::filesystem;

void add_data_options(CLI::App& verb, TrainArguments& a) {
  verb.add_option("DATA", a.data, "Files or folders: .txt, .jsonl, .csv")->required()->option_text("FILE...");
  CLI::Option* valid =
      repeatable(verb.add_option("--valid", a.valid, "A file or folder held out for validation; repeatable"))
          ->option_text("FILE");
  verb.add_option("--valid-fraction", a.valid_fraction, "Or this part of DATA")
      ->excludes(valid)
      ->check(number_between(0, 0.9))
      ->option_text("X");
  verb.add_option("--column", a.column,
                  "Of .jsonl and .csv: the text's name (text; prompt and completion; messages)")
      ->option_text("NAME");
  add_chat_template_flag(verb, a.chat_template);
  verb.add_option("--separator", a.separator,
                  "Of .txt: a line that stands between documents; empty: none; default <|endoftext|>")
      ->option_text("TEXT");
  verb.add_flag("--no-eos", a.no_eos, "No end-of-text token behind documents");
}

void add_batch_options(CLI::App& verb, TrainArguments& a) {
  verb.add_option("--batch", a.rows, "Rows of a batch; default 8")
      ->transform(integer_between(1, 1 << 20))
      ->option_text("N");
  verb.add_option("--length", a.length, "Tokens of a row; default 512")
      ->transform(integer_between(1, 1 << 24))
      ->option_text("N");
  verb.add_option("--accumulate", a.accumulate, "Batches whose gradients a step adds up; default 1")
      ->transform(integer_between(1, 1 << 16))
      ->option_text("N");
  verb.add_option("--mode", a.mode,
                  "packed (default): documents laid one after another; stream: rows go on from step to step "
                  "with their state; "
                  "documents: one a row, cut off")
      ->check(CLI::IsMember({"packed", "stream", "documents"}))
      ->option_text("NAME");
  verb.add_flag("--state-over-documents", a.keep_state_over_documents,
                "stream: the state flows on into the next document");
}

void add_optimiser_options(CLI::App& verb, TrainArguments& a) {
  CLI::Option* steps = verb.add_option("--steps", a.steps, "Optimiser steps; without it, --epochs decides")
                           ->transform(integer_between(1, int64_t{1} << 40))
                           ->option_text("N");
  verb.add_option("--epochs", a.epochs, "Passes over the data; default 1")
      ->check(positive_number())
      ->option_text("X")
      ->excludes(steps);
  verb.add_option("--lr", a.lr, fmt::format("Learning rate after the warm-up; default {}", a.lr))
      ->check(positive_number())
      ->option_text("X");
  verb.add_option("--schedule", a.schedule, "cosine (default), linear or constant")
      ->check(CLI::IsMember({"cosine", "linear", "constant"}))
      ->option_text("NAME");
  verb.add_option("--warmup", a.warmup, "Steps; without it 2 % of them")
      ->transform(integer_between(0, int64_t{1} << 40))
      ->option_text("N");
  verb.add_option("--min-lr", a.min_lr, "Where the schedule ends; without it a tenth of --lr")
      ->check(number_from(0))
      ->option_text("X");
  verb.add_option(
          "--weight-decay", a.trainer.weight_decay,
          fmt::format(
              "Of matrices, embeddings and convolutions, not of A_log, D, biases and norms; default {}",
              a.trainer.weight_decay))
      ->check(number_from(0))
      ->option_text("X");
  verb.add_option("--beta1", a.trainer.beta1, "Of AdamW; default 0.9")
      ->check(number_between(0, 0.9999))
      ->option_text("X");
  verb.add_option("--beta2", a.trainer.beta2, "Of AdamW; default 0.95")
      ->check(number_between(0, 0.999999))
      ->option_text("X");
  verb.add_option("--clip", a.trainer.clip, "Largest norm of the gradient; 0: any; default 1")
      ->check(number_from(0))
      ->option_text("X");
  verb.add_option("--ema", a.trainer.average,
                  "Write an average of the parameters with this decay (0.999, say)")
      ->check(number_between(0, 0.999999))
      ->option_text("X");
  verb.add_flag("--recompute", a.trainer.recompute_layers,
                "Keep each layer's input only and run it again: less memory, a third more time");
  verb.add_option("--seed", a.seed, "Of the order of the data and the initial values; default 0")
      ->transform(any_seed())
      ->option_text("N");
}

void add_run_options(CLI::App& verb, TrainArguments& a) {
  verb.add_option("--out", a.out, "Folder of the run and its result")->required()->option_text("DIR");
  verb.add_flag("--resume", a.resume, "Go on from DIR's newest checkpoint");
  verb.add_option("--save-every", a.save_every,
                  "Steps between checkpoints; 0: at the end and at Ctrl-C only; default 500")
      ->transform(integer_between(0, int64_t{1} << 40))
      ->option_text("N");
  verb.add_option("--keep", a.keep, "Checkpoints that are kept; default 2")
      ->transform(integer_between(1, 1000))
      ->option_text("N");
  verb.add_option("--validate-every", a.validate_every, "Steps; 0 (default): at the end only")
      ->transform(integer_between(0, int64_t{1} << 40))
      ->option_text("N");
  verb.add_option("--log-every", a.log_every, "Steps between lines of metrics.jsonl; default 10")
      ->transform(integer_between(1, 1 << 20))
      ->option_text("N");
  verb.add_option("--save-dtype", a.save_dtype, "Of the result's matrices: f32 (default), bf16 or f16")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}))
      ->option_text("NAME");
}

train::BatchMode mode_of(const std::string& name) {
  if (name == "stream") return train::BatchMode::stream;
  return name == "documents" ? train::BatchMode::documents : train::BatchMode::packed;
}

std::vector<fs::path> paths(const std::vector<std::string>& names) { return {names.begin(), names.end()}; }

std::string in_nats_and_perplexity(double loss) {
  return fmt::format("{:.4f} (perplexity {:.3f})", loss, std::exp(loss));
}

// What stands behind each document.
std::optional<int32_t> end_token(const LoadedModel& loaded) {
  if (!loaded.eos.empty()) return loaded.eos.front();
  return loaded.tokenizer ? loaded.tokenizer->eos() : std::nullopt;
}

// Flags that would do nothing.
void check_together(const TrainArguments& a) {
  check_usage(!a.keep_state_over_documents || a.mode == "stream",
              "--state-over-documents goes with --mode stream, not {}", a.mode);
  check_usage(a.validate_every == 0 || !a.valid.empty() || a.valid_fraction > 0,
              "--validate-every {}: with what? give --valid or --valid-fraction", a.validate_every);
  check_usage(a.min_lr < 0 || a.schedule != "constant", "--min-lr {}: the schedule constant has none",
              a.min_lr);
}

train::BatchOptions batch_options(const TrainArguments& a) {
  train::BatchOptions options;
  options.mode = mode_of(a.mode);
  options.rows = a.rows;
  options.length = a.length;
  options.seed = a.seed;
  options.reset_at_documents = !a.keep_state_over_documents;
  return options;
}

}  // namespace

void add_train_options(CLI::App& verb, TrainArguments& arguments) {
  add_data_options(verb, arguments);
  add_run_options(verb, arguments);
  add_batch_options(verb, arguments);
  add_optimiser_options(verb, arguments);
}

void add_train_machine_flags(CLI::App& verb, TrainArguments& arguments) {
  add_json_flag(verb, arguments.model);
  verb.add_option("--device", arguments.model.device, "auto (a card where one works), cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->option_text("NAME");
  verb.add_option("--dtype", arguments.model.dtype,
                  "Of matrix products: on a card bf16 (the default) or f32, on a CPU f32. Parameters are f32")
      ->check(CLI::IsMember({"auto", "f32", "bf16", "f16"}))
      ->option_text("NAME");
  verb.add_option("--threads", arguments.model.threads,
                  "CPU threads; without it OMP_NUM_THREADS, or one a CPU")
      ->transform(integer_between(1, 1024))
      ->option_text("N");
}

LoadOptions train_execution(const TrainArguments& a) {
  check_together(a);
  LoadOptions options = load_options(a.model);
  options.parameters_stay = true;
  if (!options.compute) options.compute = options.device.is_cuda() ? DType::bf16 : DType::f32;
  check_usage(options.compute != DType::f16, "--dtype f16: gradients would underflow; train in bf16 or f32");
  check_usage(options.device.is_cuda() || options.compute == DType::f32,
              "--dtype {}: on a CPU training is in f32", name_of(*options.compute));
  return options;
}

nlohmann::ordered_json about_run(const TrainArguments& a, const LoadedModel& loaded, const std::string& from,
                                 int64_t parameters, const train::RunOptions& run) {
  return {{"name", run.out.filename().string()},
          {"family", loaded.config.at("model_type")},
          {"parameters", parameters},
          {"layers", loaded.model->num_layers()},
          {"hidden_size", loaded.model->hidden_size()},
          {"vocab_size", loaded.model->vocab_size()},
          {"from", from},
          {"device", std::string(name_of(loaded.device))},
          {"dtype", std::string(name_of(loaded.compute))},
          {"data", a.data},
          {"mode", a.mode},
          {"batch", a.rows},
          {"length", a.length},
          {"accumulate", a.accumulate},
          {"steps", run.steps},
          {"lr", a.lr},
          {"schedule", a.schedule},
          {"weight_decay", a.trainer.weight_decay},
          {"seed", a.seed}};
}

TrainData open_train_data(const TrainArguments& a, LoadedModel& loaded, const fs::path& tokenizer) {
  Progress progress;
  train::DatasetOptions options;
  options.tokenizer = tokenizer;
  options.records.column = a.column;
  options.records.separator = a.separator;
  if (!a.no_eos) options.eos = end_token(loaded);
  train::set_chat_template(options.records, loaded, a.model.adapter, a.chat_template);
  options.progress = [&](double fraction) {
    progress.show(fmt::format("tokenising: {:.0f} %", 100 * fraction));
  };
  TrainData data;
  const std::shared_ptr<const train::TokenFile> tokens = train::open_dataset(paths(a.data), options);
  if (!a.valid.empty()) {
    data.documents.emplace(tokens);
    data.held_out.emplace(train::open_dataset(paths(a.valid), options));
  } else if (a.valid_fraction > 0) {
    auto [documents, held_out] = train::hold_out(tokens, a.valid_fraction, a.seed);
    data.documents.emplace(std::move(documents));
    data.held_out.emplace(std::move(held_out));
  } else {
    data.documents.emplace(tokens);
  }
  return data;
}

train::RunOptions run_options(TrainArguments& a, const train::DocumentSet& documents) {
  train::RunOptions options;
  options.out = a.out;
  options.batches = batch_options(a);
  options.accumulate = a.accumulate;
  options.steps =
      a.steps > 0 ? a.steps : train::steps_of_epochs(documents, options.batches, a.accumulate, a.epochs);
  options.log_every = a.log_every;
  options.validate_every = a.validate_every;
  options.save_every = a.save_every;
  options.keep = a.keep;
  options.resume = a.resume;
  options.stored = *dtype_from_name(a.save_dtype);
  const auto steps = static_cast<double>(options.steps);
  a.trainer.schedule = {.kind = train::schedule_kind(a.schedule),
                        .lr = a.lr,
                        .min_lr = a.min_lr >= 0 ? a.min_lr : 0.1 * a.lr,
                        .warmup = a.warmup >= 0 ? a.warmup : static_cast<int64_t>(0.02 * steps),
                        .steps = options.steps};
  return options;
}

void train_and_report(const LoadedModel& loaded, train::Trainer& trainer, const TrainData& data,
                      const train::RunOptions& options, const TrainArguments& arguments) {
  const InterruptScope interrupt;
  Progress progress;
  const train::RunResult result = train::run_training(
      loaded, trainer, *data.documents, data.held_out, options,
      {.step = [&](const train::Metrics& metrics,
                   double left) { progress.show(train::progress_line(metrics, options.steps, left)); },
       .stop = [&] { return interrupt.requested(); }});
  progress.clear();
  nlohmann::ordered_json json{{"steps", result.steps}, {"finished", result.finished}};
  json["loss"] = result.loss ? finite_or_null(*result.loss) : nlohmann::ordered_json();
  json["validation_loss"] =
      result.validation_loss ? finite_or_null(*result.validation_loss) : nlohmann::ordered_json();
  json["out"] = options.out.string();
  if (arguments.model.json) {
    print_json(json);
    return;
  }
  Output& out = standard_output();
  if (!result.finished) {
    out.write(fmt::format("stopped after step {} of {}; go on with --resume\n", result.steps, options.steps));
    return;
  }
  if (result.loss) out.write(fmt::format("loss        {}\n", in_nats_and_perplexity(*result.loss)));
  if (result.validation_loss) {
    out.write(fmt::format("validation  {}\n", in_nats_and_perplexity(*result.validation_loss)));
  }
  out.write(fmt::format("{}{}\nreport      {}\n", options.adapter ? "adapter     " : "model       ",
                        options.out.string(), (options.out / "report.html").string()));
}

}  // namespace ssm::app
