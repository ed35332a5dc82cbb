// ssm pull: a model of the hub into the cache.
#include "apps/ssm/commands.h"
#include "apps/ssm/flags.h"
#include "apps/ssm/long_work.h"
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
  check_usage(model.has_value(), "{}: is no name of the hub: owner/name, or owner/name@revision",
              arguments.model);
  std::filesystem::path folder;
  {
    LongWork work(arguments.model);
    hub::PullOptions options = work.pull_options();
    options.files = arguments.files;
    folder = hub::pull(*model, options);
  }
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
  repeatable(verb->add_option("--file", arguments->files, "This file, not those that are needed; repeatable"))
      ->option_text("NAME");
  verb->add_flag("--json", arguments->json, "Print one JSON object");
  verb->footer(
      "Prints the model's folder. Its name can stand wherever a MODEL is asked for, which pulls it too.\n"
      "The cache is the one that huggingface_hub uses (HF_HUB_CACHE, HF_HOME); HF_TOKEN opens private "
      "models, HF_ENDPOINT names "
      "another\n"
      "hub. What was cut off goes on where it stopped.\n\n"
      "Examples:\n"
      "  ssm pull state-spaces/mamba-130m-hf\n"
      "  ssm generate state-spaces/mamba-130m-hf \"Hey how are you doing?\"\n"
      "  ssm pull owner/model-GGUF --file model.Q4_K_M.gguf");
  verb->callback([arguments] { run(*arguments); });
}

}  // namespace ssm::app
