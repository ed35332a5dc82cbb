// Downloads as the command does them: by the environment's settings, with a progress line, stopped by Ctrl-C.
#pragma once

#include "apps/ssm/interrupt.h"
#include "apps/ssm/output.h"
#include "ssm/hub/pull.h"

namespace ssm::app {

class PullProgress {
 public:
  hub::PullOptions options();  // they refer to this; throws Error where the network is not to be used

 private:
  InterruptScope interrupt_;
  Progress progress_;
};

}  // namespace ssm::app
