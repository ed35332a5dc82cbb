// ssm convert: a model from one layout to another.
#include "ssm/load/convert.h"

#include "apps/ssm/commands.h"
#include "apps/ssm/long_work.h"
#include "apps/ssm/model_options.h"
#include "apps/ssm/resolve_model.h"
#include "ssm/core/error.h"

namespace ssm::app {
namespace {

struct Arguments {
  std::string source, target, format, dtype, tokenizer;
};

ModelFormat format_of(const Arguments& arguments) {
  if (arguments.format.empty())
    return arguments.target.ends_with(".gguf") ? ModelFormat::gguf : ModelFormat::transformers;
  if (arguments.format == "hf") return ModelFormat::transformers;
  return arguments.format == "original" ? ModelFormat::original : ModelFormat::gguf;
}

void run(const Arguments& arguments) {
  ConvertOptions options;
  if (!arguments.dtype.empty()) options.dtype = dtype_from_name(arguments.dtype);
  options.tokenizer = arguments.tokenizer;
  const std::filesystem::path source = resolve_model(arguments.source);
  LongWork work(arguments.target);
  options.progress = work.on("writing");
  convert_model(source, arguments.target, format_of(arguments), options);
}

}  // namespace

void add_convert(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* verb = program.add_subcommand("convert", "A model to another layout");
  verb->add_option("SRC", arguments->source, kModelHelp)->required();
  verb->add_option("DST", arguments->target, "What to write, which must not exist: a folder, or a .gguf file")
      ->required();
  verb->add_option(
          "--to", arguments->format,
          "hf (Transformers), original (state-spaces) or gguf (llama.cpp); without it DST's name says")
      ->check(CLI::IsMember({"hf", "original", "gguf"}))
      ->option_text("NAME");
  verb->add_option("--dtype", arguments->dtype, "Of the matrices: f32, bf16 or f16; without it each as it is")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}))
      ->option_text("NAME");
  verb->add_option("--tokenizer", arguments->tokenizer,
                   "tokenizer.json, tokenizer.model, a .gguf file or a folder with one, in place of SRC's")
      ->option_text("PATH");
  verb->footer(
      "Weights are copied as they are stored, packed ones too where DST can hold them; in GGUF what is no\n"
      "matrix is f32. What a layout cannot say is refused by name.\n\n"
      "Examples:\n"
      "  ssm convert state-spaces/mamba-130m ./mamba-130m-hf --to hf --tokenizer ./gpt-neox-20b\n"
      "  ssm convert ./my-model my-model.gguf\n"
      "  ssm convert my-model.gguf ./my-model");
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace ssm::app
