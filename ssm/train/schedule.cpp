#include "ssm/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "ssm/core/error.h"

namespace ssm::train {

ScheduleKind schedule_kind(std::string_view name) {
  if (name == "constant") return ScheduleKind::constant;
  if (name == "linear") return ScheduleKind::linear;
  if (name == "cosine") return ScheduleKind::cosine;
  fail("no schedule is called \"{}\": constant, linear, cosine", name);
}

void Schedule::check() const {
  SSM_CHECK(std::isfinite(lr) && lr > 0, "a learning rate of {}", lr);
  SSM_CHECK(min_lr >= 0 && min_lr <= lr, "a minimum of {} for a learning rate of {}", min_lr, lr);
  SSM_CHECK(steps >= 1, "a schedule of {} steps", steps);
  SSM_CHECK(warmup >= 0, "a warm-up of {} steps", warmup);
}

double Schedule::at(int64_t step) const {
  if (step < warmup) return lr * static_cast<double>(step) / static_cast<double>(warmup);
  if (kind == ScheduleKind::constant) return lr;
  const auto length = static_cast<double>(std::max<int64_t>(1, steps - warmup));
  const double done = std::min(1.0, static_cast<double>(step - warmup) / length);
  const double left = kind == ScheduleKind::linear ? 1 - done : 0.5 * (1 + std::cos(std::numbers::pi * done));
  return min_lr + (lr - min_lr) * left;
}

}  // namespace ssm::train
