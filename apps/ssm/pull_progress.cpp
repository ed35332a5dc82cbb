#include "apps/ssm/pull_progress.h"

#include <fmt/format.h>

namespace ssm::app {

hub::PullOptions PullProgress::options() {
  hub::PullOptions options = hub::pull_options_from_environment();
  options.stop = [this] { return interrupt_.requested(); };
  options.progress = [this](const std::string& file, int64_t done, int64_t size) {
    progress_.show(fmt::format("{}: {:.1f} of {:.1f} MB", file, static_cast<double>(done) / 1e6,
                               static_cast<double>(size) / 1e6));
  };
  return options;
}

}  // namespace ssm::app
