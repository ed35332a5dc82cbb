// Ctrl-C or SIGTERM asks long work to stop; a second one ends the program at once.
#pragma once

namespace ssm::app {

class InterruptScope {
 public:
  InterruptScope();
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;
  bool requested() const;
};

}  // namespace ssm::app
