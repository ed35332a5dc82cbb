// ssm merge: a model and an adapter to one model.
#include "apps/ssm/commands.h"
#include "apps/ssm/long_work.h"
#include "apps/ssm/model_options.h"
#include "apps/ssm/output.h"
#include "apps/ssm/resolve_model.h"
#include "ssm/io/atomic_folder.h"
#include "ssm/io/checkpoint_writer.h"
#include "ssm/io/lazy_weight.h"
#include "ssm/load/adapter.h"
#include "ssm/load/chat.h"
#include "ssm/load/load_model.h"
#include "ssm/load/tokenizer.h"

namespace ssm::app {
namespace {

struct Arguments {
  std::string model, adapter, out, dtype;
};

void run(const Arguments& arguments) {
  LoadOptions options;  // on the host, its parameters as they are stored
  options.adapter = arguments.adapter;
  LoadedModel loaded = load_model(resolve_model(arguments.model), options);
  const bool was_tied = loaded.model->tied();
  const DType stored = arguments.dtype.empty() ? loaded.stored : *dtype_from_name(arguments.dtype);
  std::vector<io::LazyTensor> tensors = merged_parameters(*loaded.model, stored);
  loaded.config["tie_word_embeddings"] = loaded.model->tied();
  LongWork work(arguments.out);
  io::report_making(tensors, work.on("merging"));
  io::AtomicFolder made(arguments.out);
  io::write_checkpoint(made.path(), loaded.config, stored, tensors);
  copy_tokenizer(loaded.folder, made.path());
  save_bos_setting(loaded, made.path());
  made.commit();
  if (was_tied && !loaded.model->tied()) {
    note("the embedding and the head differ now and are written apart");
  }
}

}  // namespace

void add_merge(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* verb = program.add_subcommand("merge", "A model and an adapter to one model");
  verb->add_option("MODEL", arguments->model, kModelHelp)->required();
  verb->add_option("ADAPTER", arguments->adapter, "A folder in PEFT's layout")->required();
  verb->add_option("OUT", arguments->out, "The folder to write, which must not exist")->required();
  verb->add_option("--dtype", arguments->dtype, "Of the matrices: f32, bf16 or f16; without it the model's")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}))
      ->option_text("NAME");
  verb->footer(
      "W + scale B A is computed in f32 and rounded once. Where the adapter changes the embedding or the "
      "head "
      "of a\n"
      "model that has one matrix for both, they are written as two.\n\n"
      "Examples:\n"
      "  ssm merge state-spaces/mamba-130m-hf ./my-adapter ./my-model\n"
      "  ssm merge ./my-model ./my-adapter ./merged --dtype bf16");
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace ssm::app
