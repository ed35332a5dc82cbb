// Ctrl-C or SIGTERM asks long work to stop. Both may come twice at once (timeout(1), a shell and a
// service manager signal the process and then its group), so only a Ctrl-C a moment after the first
// ends the program before its work is saved; SIGTERM never does, SIGKILL is there for that.
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
