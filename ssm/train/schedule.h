// The learning rate of a step: Transformers' get_constant, get_linear and get_cosine_schedule_with_warmup,
// and with a minimum its get_cosine_with_min_lr_schedule_with_warmup.
//
//   warm-up, step < warmup:   lr * step / warmup
//   then, with p = (step - warmup) / (steps - warmup), 1 from `steps` on:
//     constant                lr
//     linear                  min_lr + (lr - min_lr) (1 - p)
//     cosine                  min_lr + (lr - min_lr) (1 + cos(pi p)) / 2
// Steps count from 0, so with a warm-up the first update has the rate 0, as there. Past the last step the
// rate stays; there the cosine would rise again.
#pragma once

#include <cstdint>
#include <string_view>

namespace ssm::train {

enum class ScheduleKind { constant, linear, cosine };

ScheduleKind schedule_kind(std::string_view name);  // throws Error listing the names

struct Schedule {
  ScheduleKind kind = ScheduleKind::cosine;
  double lr = 1e-3;
  double min_lr = 0;  // not of constant
  int64_t warmup = 0;
  int64_t steps = 1;  // of the whole training, warm-up included

  void check() const;  // throws Error naming the field that makes no sense
  double at(int64_t step) const;
};

}  // namespace ssm::train
