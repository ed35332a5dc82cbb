#include "apps/ssm/resolve_model.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "apps/ssm/long_work.h"
#include "ssm/core/error.h"
#include "ssm/load/random_model.h"

namespace ssm::app {
namespace {

namespace fs = std::filesystem;

// models/<name> of this program: of the source tree it was built in, or of the place it was installed to.
std::optional<fs::path> find_bundled(const std::string& name) {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (error) return std::nullopt;
  for (const char* models : {"../../../models", "../share/ssm/models"}) {
    const fs::path folder = (program.parent_path() / models / name).lexically_normal();
    if (fs::is_regular_file(folder / "config.json", error)) return folder;
  }
  return std::nullopt;
}

}  // namespace

std::optional<fs::path> find_model(const std::string& model) {
  if (model.empty()) return find_bundled(kBundledModel);
  std::error_code error;
  if (fs::exists(model, error)) return fs::path(model);
  if (model == kBundledModel) return find_bundled(model);
  const std::optional<fs::path> cached = hub::find_cached_model(model);
  return cached && hub::holds_weights(*cached) ? cached : std::nullopt;
}

fs::path resolve_model(const std::string& model) {
  if (const std::optional<fs::path> found = find_model(model)) return *found;
  if (model.empty())
    fail("no MODEL given, and the bundled model {} is not beside this program", kBundledModel);
  if (const std::optional<hub::HubName> name = hub::parse_hub_name(model)) {
    LongWork work(model);
    return hub::find_or_pull(*name, true, [&] { return work.pull_options(); });
  }
  fail("{}: no such file or folder", model);
}

bool names_model(const std::string& argument) {
  std::error_code error;
  if (fs::is_directory(argument, error)) return true;
  const bool is_word = std::none_of(argument.begin(), argument.end(),
                                    [](char c) { return static_cast<unsigned char>(c) <= ' '; });
  const bool could_be = argument.find('/') != std::string::npos || argument.ends_with(".gguf") ||
                        argument == kBundledModel || named_shape(argument);
  return is_word && could_be;
}

}  // namespace ssm::app
