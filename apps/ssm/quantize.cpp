// ssm quantize: a model in fewer bits.
#include "apps/ssm/commands.h"
#include "apps/ssm/flags.h"
#include "apps/ssm/long_work.h"
#include "apps/ssm/model_options.h"
#include "apps/ssm/output.h"
#include "apps/ssm/quantize_report.h"
#include "apps/ssm/resolve_model.h"
#include "apps/ssm/token_list.h"
#include "ssm/core/atomic_file.h"
#include "ssm/core/parallel.h"
#include "ssm/runtime/calibrate.h"

namespace ssm::app {
namespace {

struct Arguments {
  std::string source, target, type, calibrate, report, text;
  int64_t group = 64;
  bool group_given = false, json = false;
  std::vector<std::string> keep;
  int threads = 0;
};

LoadedModel load_exact(const std::filesystem::path& path) {
  LoadOptions options;
  options.compute = DType::f32;
  return load_model(path, options);
}

std::vector<int32_t> ids_of(const LoadedModel& model, const std::string& file) {
  return model.need_tokenizer().encode(read_text_file(file));
}

Divergence compare(const std::filesystem::path& source, const std::vector<int32_t>& ids,
                   const Arguments& arguments) {
  const LoadedModel original = load_exact(source), made = load_exact(arguments.target);
  Progress progress;
  return divergence(original, made, ids,
                    [&](int64_t done) { progress.show_share("comparing", done, std::ssize(ids)); });
}

void write_report(const QuantizeReport& report, const Arguments& arguments) {
  if (arguments.json) print_json(report.json());
  if (arguments.report.empty()) return;
  const bool as_json = arguments.report.ends_with(".json");
  const std::string text = as_json ? report.json().dump(1) + "\n" : report.table();
  if (arguments.report == "-") return standard_output().write(text);
  write_whole(arguments.report, text);
}

void run(const Arguments& arguments) {
  check_usage(arguments.text.empty() || arguments.json || !arguments.report.empty(),
              "--text {}: compares for a report; give --report or --json", arguments.text);
  const bool to_file = !arguments.report.empty() && arguments.report != "-";
  if (to_file) check_writable(arguments.report);
  set_num_threads(arguments.threads);
  const std::filesystem::path source = resolve_model(arguments.source);
  Quantization quantization{.format = format_named(arguments.type, arguments.group, arguments.group_given),
                            .keep = arguments.keep};
  check_usage(!arguments.target.ends_with(".gguf") || quantization.format.type < QuantType::int8,
              "--type {}: GGUF has no such type; give another, or a folder as DST", arguments.type);
  std::vector<int32_t> compared;
  if (!arguments.text.empty() || !arguments.calibrate.empty()) {
    const LoadedModel model = load_exact(source);
    if (!arguments.text.empty()) compared = ids_of(model, arguments.text);
    if (!arguments.calibrate.empty())
      quantization.importance = column_importance(model, ids_of(model, arguments.calibrate),
                                                  LongWork(arguments.target).on("calibrating"));
  }
  QuantizeReport report{.source = source.string(),
                        .target = arguments.target,
                        .type = name_of(quantization.format),
                        .calibrated = !arguments.calibrate.empty(),
                        .tensors = quantize_model(source, arguments.target, quantization,
                                                  LongWork(arguments.target).on("packing")),
                        .text = {}};
  if (!arguments.text.empty()) report.text = compare(source, compared, arguments);
  write_report(report, arguments);
}

}  // namespace

void add_quantize(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  Arguments& a = *arguments;
  CLI::App* verb = program.add_subcommand("quantize", "A model in fewer bits");
  verb->add_option("SRC", a.source, kModelHelp)->required();
  verb->add_option("DST", a.target, "What to write, which must not exist: a folder, or a .gguf file")
      ->required();
  verb->add_option("--type", a.type,
                   fmt::format("Of the matrices: {}", fmt::join(quantization_types(), ", ")))
      ->required()
      ->check(CLI::IsMember(quantization_types()))
      ->option_text("TYPE");
  add_group_flag(*verb, a.group, a.group_given);
  verb->add_option("--calibrate", a.calibrate,
                   "A text like those the model is to read: what matters to it is kept best")
      ->option_text("FILE");
  repeatable(
      verb->add_option("--keep", a.keep, "Part of the names of matrices that stay as they are; repeatable"))
      ->option_text("NAME");
  verb->add_option("--report", a.report,
                   "Each tensor's type and size, and what --text tells; FILE.json, or - for here")
      ->option_text("FILE");
  verb->add_option("--text", a.text, "For the report: perplexity and KL divergence against SRC on this text")
      ->option_text("FILE");
  verb->add_flag("--json", a.json, "Print the report as one JSON object");
  verb->add_option("--threads", a.threads, "CPU threads; without it OMP_NUM_THREADS, or one a CPU")
      ->transform(integer_between(1, 1024))
      ->option_text("N");
  verb->footer(
      "Matrices are packed; norms, convolutions, A_log, D and biases stay as they are. Under a 4-bit type "
      "the\n"
      "embedding and the head get one of 5 (int4: 8) bits, x_proj and dt_proj 8. Rows that are no multiple "
      "of a\n"
      "type's block take a type that fits: q4_k -> q5_0, q5_k -> q5_1, q6_k -> q8_0, else 16 bits. --report "
      "tells.\n"
      "GGUF has no int8 and int4.\n\n"
      "Examples:\n"
      "  ssm quantize state-spaces/mamba-130m-hf ./mamba-130m-q4_0 --type q4_0\n"
      "  ssm quantize ./my-model ./small --type int4 --group 64 --calibrate book.txt --text other.txt "
      "--report -\n"
      "  ssm quantize ./my-model my-model.gguf --type q4_k --keep embeddings");
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace ssm::app
