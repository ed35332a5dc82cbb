// ssm train: from scratch, or a whole model further.
#include <fmt/format.h>

#include "apps/ssm/commands.h"
#include "apps/ssm/flags.h"
#include "apps/ssm/resolve_model.h"
#include "apps/ssm/train_options.h"
#include "ssm/io/config.h"
#include "ssm/io/mapped_file.h"
#include "ssm/load/random_model.h"
#include "ssm/load/tokenizer.h"
#include "ssm/models/registry.h"
#include "ssm/text/bpe_trainer.h"
#include "ssm/train/init.h"

namespace ssm::app {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kVocabMultiple = 8;

struct Arguments : TrainArguments {
  std::string from, shape, config, family = "mamba2", init = "reference";
  int64_t layers = 8, width = 256, state = 0, head_dim = 64;
};

bool is_bytes(const Arguments& a) { return a.model.tokenizer == "bytes"; }

// Where the tokenizer's files lie: empty for bytes.
fs::path tokenizer_of(const Arguments& a) {
  if (is_bytes(a)) return {};
  if (!a.model.tokenizer.empty()) return a.model.tokenizer;
  return resolve_model(a.from);
}

nlohmann::json config_of(const Arguments& a, int64_t vocab) {
  nlohmann::json config;
  if (!a.config.empty()) {
    const io::Bytes text = io::map_file(a.config);
    config = io::read_config(text.text(), text.name);
  } else if (!a.shape.empty()) {
    const std::optional<nlohmann::json> named = named_shape(a.shape);
    check_usage(named.has_value(), "--shape {}: known are {}", a.shape, fmt::join(named_shapes(), ", "));
    config = *named;
  } else {
    nlohmann::json fields{{"model_type", a.family},
                          {"vocab_size", vocab},
                          {"hidden_size", a.width},
                          {"num_hidden_layers", a.layers},
                          {"tie_word_embeddings", true}};
    if (a.state > 0) fields["state_size"] = a.state;
    if (a.family == "mamba2") {
      fields.update({{"head_dim", a.head_dim}, {"num_heads", 2 * a.width / a.head_dim}, {"n_groups", 1}});
      if (a.state == 0) fields["state_size"] = 64;
    }
    return reading_arguments(
        [&] { return io::read_config(fields.dump(), "--width, --layers, --state, --head-dim"); });
  }
  if (config.at("vocab_size") < vocab || a.shape.size() > 0) config["vocab_size"] = vocab;
  return config;
}

LoadedModel from_scratch(const Arguments& a, const LoadOptions& options, const fs::path& tokenizer) {
  LoadedModel loaded;
  loaded.layout = "transformers";
  loaded.folder = tokenizer;
  if (!tokenizer.empty()) {
    loaded.tokenizer = open_model_tokenizer(tokenizer);
    SSM_CHECK(loaded.tokenizer, "{}: no tokenizer there", tokenizer.string());
  }
  const int64_t ids = loaded.tokenizer ? loaded.tokenizer->size() : 256;
  const int64_t vocab = (ids + kVocabMultiple - 1) / kVocabMultiple * kVocabMultiple;
  loaded.config = config_of(a, vocab);
  const auto eos = loaded.tokenizer ? loaded.tokenizer->eos() : std::nullopt;
  loaded.config["eos_token_id"] = eos ? nlohmann::json(*eos) : nlohmann::json();
  loaded.config["bos_token_id"] = loaded.config["eos_token_id"];
  loaded.config["pad_token_id"] = loaded.config["eos_token_id"];
  set_execution(loaded, options);
  loaded.model = make_causal_lm(loaded.config, precision_of(loaded));
  const auto scheme = a.init == "hf" ? train::InitScheme::huggingface : train::InitScheme::reference;
  train::initialise(*loaded.model, loaded.config, scheme, a.seed);
  return loaded;
}

void run(Arguments& a) {
  const LoadOptions options = train_execution(a);
  const fs::path tokenizer = tokenizer_of(a);
  LoadedModel loaded;
  if (a.from.empty()) {
    loaded = from_scratch(a, options, tokenizer);
  } else {
    LoadOptions from = options;
    if (is_bytes(a)) from.tokenizer.clear();
    loaded = load_model(resolve_model(a.from), from);
    loaded.folder = tokenizer;
  }
  const TrainData data = open_train_data(a, loaded, tokenizer);
  train::RunOptions run = run_options(a, *data.documents);
  train::Trainer trainer(*loaded.model, is_bytes(a) ? 256 : loaded.usable_vocab(), loaded.device,
                         loaded.compute, a.trainer);
  run.about = about_run(a, loaded, a.from.empty() ? "scratch" : a.from, trainer.parameters().count(), run);
  // So that whoever reads the result has its ids, as of any other model.
  if (is_bytes(a)) run.tokenizer_json = text::plain_bytes().tokenizer_json();
  train_and_report(loaded, trainer, data, run, a);
}

}  // namespace

void add_train(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* verb = program.add_subcommand("train", "Trains a model from scratch, or a whole model further");
  add_train_options(*verb, *arguments);
  CLI::Option* from = verb->add_option("--from", arguments->from,
                                       "Train this MODEL further, all of it; without it a new one is made")
                          ->option_text("MODEL");
  verb->add_option(
          "--tokenizer", arguments->model.tokenizer,
          "tokenizer.json, tokenizer.model, a .gguf file or a folder with one; bytes: ids are bytes, and "
          "the result brings a tokenizer that says so. Without it the bundled model's, or that of "
          "--from")
      ->option_text("PATH");
  std::vector<CLI::Option*> sizes{verb->add_option("--family", arguments->family,
                                                   "Of a new model: mamba, mamba2 (default) or falcon_mamba")
                                      ->check(CLI::IsMember({"mamba", "mamba2", "falcon_mamba"}))
                                      ->option_text("NAME")};
  const auto size = [&](const char* flag, int64_t& value, int64_t high, const char* text) {
    sizes.push_back(verb->add_option(flag, value, text)->transform(integer_between(1, high)));
    sizes.back()->option_text("N");
  };
  size("--layers", arguments->layers, 4096, "Of a new model; default 8");
  size("--width", arguments->width, 1 << 20, "Its hidden size; default 256");
  size("--state", arguments->state, 4096, "Its state size; without it 16, or 64 of mamba2");
  size("--head-dim", arguments->head_dim, 4096, "Of a new mamba2; default 64");
  const CLI::Option* head_dim = sizes.back();
  CLI::Option* shape =
      verb->add_option("--shape", arguments->shape, "A published shape: mamba-130m, mamba2-130m, ...")
          ->option_text("NAME")
          ->excludes(from);
  CLI::Option* config =
      verb->add_option("--config", arguments->config, "A config.json that describes the new model")
          ->option_text("FILE")
          ->excludes(from)
          ->excludes(shape);
  for (CLI::Option* option : sizes) option->excludes(from)->excludes(shape)->excludes(config);
  verb->add_option("--init", arguments->init,
                   "First values: reference (mamba_ssm's, default) or hf (Transformers')")
      ->check(CLI::IsMember({"reference", "hf"}))
      ->option_text("NAME")
      ->excludes(from);
  add_train_machine_flags(*verb, *arguments);
  verb->footer(
      "Ctrl-C and SIGTERM save a checkpoint and stop; --resume goes on where it stopped, to the bit on a "
      "CPU.\n"
      "DIR then holds the model, its checkpoints, metrics.jsonl, TensorBoard events and report.html.\n\n"
      "Examples:\n"
      "  ssm train book.txt --out my-model\n"
      "  ssm train stories.jsonl --column story --out tales --layers 12 --width 384 --valid-fraction 0.01\n"
      "  ssm train notes/ --from state-spaces/mamba-130m-hf --out mamba-notes --lr 1e-4 --epochs 3\n"
      "  ssm train genome.fa --tokenizer bytes --mode stream --state-over-documents --out dna");
  verb->callback([arguments, head_dim] {
    check_usage(head_dim->count() == 0 || arguments->family == "mamba2",
                "--head-dim {}: {} has no heads, mamba2 has", arguments->head_dim, arguments->family);
    run(*arguments);
  });
}

}  // namespace ssm::app
