// Long work that leaves something whole or nothing: a progress line, and Ctrl-C or SIGTERM end it.
#pragma once

#include <string>

#include "apps/ssm/interrupt.h"
#include "apps/ssm/output.h"
#include "ssm/core/progress.h"
#include "ssm/hub/pull.h"

namespace ssm::app {

class LongWork {
 public:
  // `result`: what stopped work is not going to leave, for the error.
  explicit LongWork(std::string result) : result_(std::move(result)) {}

  // What they give refers to this. "doing: 12 %"; throws Error where the work is to stop.
  OnProgress on(std::string doing);
  // Downloads by the environment's settings; throws Error where the network is not to be used.
  hub::PullOptions pull_options();

 private:
  std::string result_;
  InterruptScope interrupt_;
  Progress line_;
};

}  // namespace ssm::app
