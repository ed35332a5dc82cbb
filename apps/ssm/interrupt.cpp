#include "apps/ssm/interrupt.h"

#include <csignal>
#include <ctime>

namespace ssm::app {
namespace {

volatile std::sig_atomic_t interrupted = 0;
volatile std::sig_atomic_t interrupted_at = 0;  // seconds of the steady clock

std::sig_atomic_t seconds_now() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);  // may be called in a handler (signal-safety(7))
  return static_cast<std::sig_atomic_t>(now.tv_sec);
}

void on_terminate(int) { interrupted = 1; }

void on_interrupt(int signal) {
  if (interrupted == 0) {
    interrupted_at = seconds_now();
    interrupted = 1;
  } else if (seconds_now() - interrupted_at > 1) {
    std::signal(signal, SIG_DFL);
    raise(signal);  // delivered when the handler returns
  }
}

void handle(int signal, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigaction(signal, &action, nullptr);
}

}  // namespace

InterruptScope::InterruptScope() {
  interrupted = 0;
  handle(SIGINT, on_interrupt);
  handle(SIGTERM, on_terminate);
}

InterruptScope::~InterruptScope() {
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

bool InterruptScope::requested() const { return interrupted != 0; }

}  // namespace ssm::app
