// ssm finetune: trains a LoRA adapter of a model.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>

#include "apps/ssm/commands.h"
#include "apps/ssm/flags.h"
#include "apps/ssm/resolve_model.h"
#include "apps/ssm/train_options.h"
#include "ssm/hub/model_cache.h"
#include "ssm/io/gguf.h"
#include "ssm/train/adapter.h"

namespace ssm::app {
namespace {

struct Arguments : TrainArguments {
  std::string from;
  io::AdapterConfig adapter;
  std::optional<double> dropout;
};

constexpr std::array<std::string_view, 14> kTargets{
    "in_proj", "x_proj",          "dt_proj", "out_proj",      "embeddings",    "lm_head",  "fc1",
    "fc2",     "query_key_value", "dense",   "dense_h_to_4h", "dense_4h_to_h", "embed_in", "embed_out"};

// Mamba-2 has no x_proj.
std::vector<std::string> default_targets(const LoadedModel& loaded) {
  const std::string type = loaded.config.at("model_type");
  if (type == "gpt_neox") return {"query_key_value", "dense"};
  if (type == "mamba2" || type == "mamba_hybrid") return {"in_proj", "out_proj"};
  return {"in_proj", "x_proj", "out_proj"};
}

// Whether an argument before others is the MODEL, not the first of DATA, which may be folders too.
bool is_model(const std::string& argument) {
  const std::filesystem::path path(argument);
  std::error_code error;
  if (std::filesystem::is_directory(path, error))
    return std::filesystem::exists(path / "config.json", error) ||
           std::filesystem::exists(path / "params.json", error);
  if (std::filesystem::exists(path, error) || path.extension() == ".gguf") return io::is_gguf(path);
  const bool is_data =
      path.extension() == ".txt" || path.extension() == ".jsonl" || path.extension() == ".csv";
  return argument == kBundledModel || (!is_data && hub::parse_hub_name(argument));
}

// Sorts the positional arguments into the model and the data.
void sort_arguments(Arguments& a) {
  const bool has_model = is_model(a.model.model);
  check_usage(a.from.empty() || !has_model, "two models: {} and --from {}", a.model.model, a.from);
  if (has_model) {
    a.from = a.model.model;
  } else if (!a.model.model.empty()) {
    a.data.insert(a.data.begin(), a.model.model);
  }
  check_usage(!a.data.empty(), "DATA is required: files or folders, .txt, .jsonl, .csv");
}

void run(Arguments& a) {
  sort_arguments(a);
  LoadOptions options = train_execution(a);
  options.adapter.clear();  // it is attached as what is trained
  LoadedModel loaded = load_model(resolve_model(a.from), options);
  loaded.need_tokenizer();
  if (!a.model.adapter.empty()) {
    a.adapter = train::continue_adapter(*loaded.model, a.model.adapter, a.dropout);
  } else {
    if (a.dropout) a.adapter.dropout = *a.dropout;
    if (a.adapter.target_modules.empty()) a.adapter.target_modules = default_targets(loaded);
    train::begin_adapter(*loaded.model, a.adapter, a.seed);
  }
  a.adapter.base_model = a.from.empty() ? loaded.folder.string() : a.from;
  const std::filesystem::path tokenizer =
      a.model.tokenizer.empty() ? loaded.folder : std::filesystem::path(a.model.tokenizer);
  const TrainData data = open_train_data(a, loaded, tokenizer);
  train::RunOptions run = run_options(a, *data.documents);
  run.adapter = a.adapter;
  a.trainer.trained = train::trained_by(a.adapter);
  a.trainer.seed = a.seed;
  train::Trainer trainer(*loaded.model, loaded.usable_vocab(), loaded.device, loaded.compute, a.trainer);
  run.about = about_run(a, loaded, a.adapter.base_model, trainer.parameters().count(), run);
  run.about["r"] = a.adapter.r;
  run.about["lora_alpha"] = a.adapter.alpha;
  run.about["target_modules"] = a.adapter.target_modules;
  train_and_report(loaded, trainer, data, run, a);
}

void add_lora_options(CLI::App& verb, Arguments& a) {
  CLI::Option* begun =
      verb.add_option("--adapter", a.model.adapter,
                      "Train this adapter further, with its rank, scale and targets, by a fresh optimiser")
          ->option_text("FOLDER");
  verb.add_option("--r", a.adapter.r, "Rank of the changes; default 8")
      ->transform(integer_between(1, 1 << 16))
      ->option_text("N")
      ->excludes(begun);
  verb.add_option("--lora-alpha", a.adapter.alpha, "They are scaled by alpha / r; default 8")
      ->check(positive_number())
      ->option_text("X")
      ->excludes(begun);
  verb.add_option("--lora-dropout", a.dropout, "Of what goes into them, in training; default 0")
      ->check(number_between(0, 0.99))
      ->option_text("X");
  repeatable(verb.add_option(
                 "--target-modules", a.adapter.target_modules,
                 fmt::format("Any of {}, as the model has them; without it in_proj,x_proj,out_proj (Mamba-2 "
                             "has no x_proj), of GPT-NeoX "
                             "query_key_value,dense",
                             fmt::join(kTargets, ", "))))
      ->delimiter(',')
      ->check(CLI::IsMember(std::vector<std::string>(kTargets.begin(), kTargets.end())))
      ->option_text("NAMES")
      ->excludes(begun);
  verb.add_option("--bias", a.adapter.bias,
                  "Biases that are trained too: none, all, or lora_only (the targets')")
      ->check(CLI::IsMember({"none", "all", "lora_only"}))
      ->option_text("NAME")
      ->excludes(begun);
  verb.add_flag("--use-rslora", a.adapter.use_rslora, "Scale by alpha / sqrt(r)")
      ->option_text(" ")
      ->excludes(begun);
  repeatable(verb.add_option("--train", a.adapter.modules_to_save,
                             "Trained whole: A_log, D, dt_bias, conv1d, norm, norm_f, ..."))
      ->delimiter(',')
      ->option_text("NAMES")
      ->excludes(begun);
}

}  // namespace

void add_finetune(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  Arguments& a = *arguments;
  a.lr = 2e-3;
  a.trainer.weight_decay = 0;
  CLI::App* verb = program.add_subcommand("finetune", "Trains a LoRA adapter of a model");
  verb->add_option("MODEL", a.model.model,
                   fmt::format("{}, which stays as it is; absent: the bundled model", kModelHelp));
  add_train_options(*verb, a);
  verb->get_option("DATA")->required(false);  // a first one alone is taken for a MODEL by the parser
  verb->add_option("--from", a.from, "The MODEL as a flag, as of ssm train")->option_text("MODEL");
  add_lora_options(*verb, a);
  add_tokenizer_flag(*verb, a.model);
  add_train_machine_flags(*verb, a);
  verb->footer(
      "DIR then holds adapter_config.json and adapter_model.safetensors in PEFT's layout, checkpoints, "
      "metrics.jsonl,\n"
      "TensorBoard events and report.html. Use it with --adapter DIR, or make a model of it with ssm "
      "merge.\n\n"
      "Examples:\n"
      "  ssm finetune state-spaces/mamba-130m-hf quotes.csv --column quote --out quotes \\\n"
      "      --target-modules x_proj,embeddings,in_proj,out_proj --epochs 3 --batch 4\n"
      "  ssm generate state-spaces/mamba-130m-hf \"Be yourself\" --adapter quotes\n"
      "  ssm finetune ./my-model chats.jsonl --out tuned --r 16 --lora-alpha 32 --train "
      "A_log,D,conv1d\n"
      "  ssm finetune ./my-model more.jsonl --adapter tuned --out tuned-more --lr 5e-4");
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace ssm::app
