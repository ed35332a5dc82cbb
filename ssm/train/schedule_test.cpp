// Learning rates against those of Transformers 4.57's schedules.
#include "ssm/train/schedule.h"

#include <cmath>

#include "ssm/train/test_data.h"

namespace ssm::train {
namespace {

constexpr int64_t kSteps[] = {0, 1, 9, 10, 11, 50, 99, 100};

void expect_rates(const Schedule& schedule, const std::vector<double>& expected) {
  schedule.check();
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(schedule.at(kSteps[i]), expected[i], 1e-18 + 1e-14 * expected[i]) << kSteps[i];
  }
}

TEST(Schedule, EqualsTransformers) {
  Schedule schedule{ScheduleKind::cosine, 6e-4, 0, 10, 100};
  expect_rates(schedule, {0, 5.9999999999999995e-05, 0.00054, 0.0006, 0.0005998172481057287,
                          0.0003520944533000791, 1.8275189427127136e-07, 0});
  schedule.kind = ScheduleKind::linear;
  expect_rates(schedule, {0, 5.9999999999999995e-05, 0.00054, 0.0006, 0.0005933333333333333,
                          0.0003333333333333333, 6.666666666666667e-06, 0});
  schedule.kind = ScheduleKind::constant;
  expect_rates(schedule, {0, 5.9999999999999995e-05, 0.00054, 0.0006, 0.0006, 0.0006, 0.0006, 0.0006});
  expect_rates({ScheduleKind::cosine, 6e-4, 6e-5, 10, 100},
               {0, 5.9999999999999995e-05, 0.00054, 0.0006, 0.0005998355232951559, 0.0003768850079700712,
                6.016447670484414e-05, 5.9999999999999995e-05});
  expect_rates({ScheduleKind::cosine, 6e-4, 0, 0, 100},
               {0.0006, 0.0005998519681097194, 0.0005880881057030829, 0.0005853169548885461,
                0.0005822642306862676, 0.0003, 1.4803189028051998e-07, 0});
}

TEST(Schedule, StaysAtItsEnd) {
  const Schedule schedule{ScheduleKind::cosine, 1, 0.25, 10, 100};
  EXPECT_EQ(schedule.at(100), 0.25);
  EXPECT_EQ(schedule.at(1000), 0.25);
  const Schedule all_warmup{ScheduleKind::linear, 1, 0, 50, 50};
  EXPECT_EQ(all_warmup.at(49), 0.98);
  EXPECT_EQ(all_warmup.at(50), 1);
}

TEST(Schedule, NonsenseIsRefused) {
  expect_error([] { schedule_kind("square"); }, "no schedule is called \"square\": constant, linear, cosine");
  EXPECT_EQ(schedule_kind("linear"), ScheduleKind::linear);
  expect_error([] { Schedule{ScheduleKind::cosine, -1}.check(); }, "a learning rate of -1");
  expect_error([] { Schedule{ScheduleKind::cosine, std::nan("")}.check(); }, "a learning rate of nan");
  expect_error(
      [] {
        Schedule{ScheduleKind::cosine, 1, 2}.check();
      },
      "a minimum of 2 for a learning rate of 1");
  expect_error([] { Schedule{ScheduleKind::cosine, 1, 0, -1}.check(); }, "a warm-up of -1 steps");
}

}  // namespace
}  // namespace ssm::train
