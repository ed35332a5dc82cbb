#include "apps/ssm/long_work.h"

#include <fmt/format.h>

#include "ssm/core/error.h"

namespace ssm::app {

OnProgress LongWork::on(std::string doing) {
  return [this, doing = std::move(doing)](int64_t done, int64_t all) {
    SSM_CHECK(!interrupt_.requested(), "{}: stopped, nothing was written", result_);
    line_.show_share(doing, done, all);
  };
}

hub::PullOptions LongWork::pull_options() {
  hub::PullOptions options = hub::pull_options_from_environment();
  options.stop = [this] { return interrupt_.requested(); };
  options.progress = [this](const std::string& file, int64_t done, int64_t size) {
    line_.show(fmt::format("{}: {:.1f} of {:.1f} MB", file, static_cast<double>(done) / 1e6,
                           static_cast<double>(size) / 1e6));
  };
  return options;
}

}  // namespace ssm::app
