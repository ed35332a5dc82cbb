// ssm pull: a model of the hub into the cache.
#include "ssm/hub/pull.h"

#include <fmt/format.h>

#include "apps/ssm/commands.h"
#include "apps/ssm/interrupt.h"
#include "apps/ssm/output.h"
#include "ssm/core/error.h"

namespace ssm::app {
namespace {

struct Arguments {
  std::string model;
  std::vector<std::string> files;
  bool json = false;
};

void run(const Arguments& arguments) {
  const std::optional<hub::HubName> model = hub::parse_hub_name(arguments.model);
  SSM_CHECK(model, "{}: is no name of the hub: owner/name, or owner/name@revision", arguments.model);
  const InterruptScope interrupt;
  Progress progress;
  hub::PullOptions options = hub::pull_options_from_environment();
  options.files = arguments.files;
  options.stop = [&] { return interrupt.requested(); };
  options.progress = [&](const std::string& file, int64_t done, int64_t size) {
    progress.show(fmt::format("{}: {:.1f} of {:.1f} MB", file, static_cast<double>(done) / 1e6,
                              static_cast<double>(size) / 1e6));
  };
  const std::filesystem::path folder = hub::pull(*model, options);
  progress.clear();
  if (arguments.json)
    print_json({{"model", arguments.model}, {"folder", folder.string()}});
  else
    standard_output().write(folder.string() + "\n");
}

}  // namespace

void add_pull(CLI::App& program) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* verb = program.add_subcommand("pull", "Gets a model of the Hugging Face hub into the cache");
  verb->add_option("REPO", arguments->model, "owner/name, or owner/name@revision")->required();
  verb->add_option("--file", arguments->files, "This file, not those that are needed; may be given again")
      ->option_text("NAME...");
  verb->add_flag("--json", arguments->json, "Print one JSON object");
  verb->footer(
      "Prints the model's folder. Its name can stand wherever a MODEL is asked for. The cache is the one "
      "that\n"
      "huggingface_hub uses (HF_HUB_CACHE, HF_HOME); HF_TOKEN opens private models, HF_ENDPOINT names "
      "another\n"
      "hub. What was cut off goes on where it stopped.\n\n"
      "Examples:\n"
      "  ssm pull state-spaces/mamba-130m-hf\n"
      "  ssm generate state-spaces/mamba-130m-hf \"Hey how are you doing?\"\n"
      "  ssm pull owner/model-GGUF --file model.Q4_K_M.gguf");
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace ssm::app
