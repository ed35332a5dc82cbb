// dt_scan_step against the f64 references of the ops it fuses.
#include "ssm/ops/cuda/step_test.h"
#include "ssm/ops/dt_scan_step/dt_scan_step.h"
#include "ssm/ops/linear/linear_reference.h"
#include "ssm/ops/selective_scan/selective_scan_reference.h"

namespace ssm {
namespace {

using test::channels_contiguous_on_card;
using test::Doubles;
using test::on_card;
using test::relative_error;
using test::rounded;
using test::to_doubles;

constexpr int64_t kN = 16;

struct Case {
  int64_t T, E, R, S;
  DType dtype, state_dtype;
  Tensor uz, dt_B_C, dt_proj, dt_bias, A, D, state;  // on the host
  std::vector<int32_t> slots;
  float eps = 0;
  DtScanStepArgs args;  // on the card

  Case(Rng& rng, int64_t most_rows)
      : T(1 + rng.below(most_rows)),
        E(64 * (1 + rng.below(rng.below(4) ? 8 : 40))),
        R(16 * (1 + rng.below(16))),
        S(T + rng.below(4)),
        dtype(test::kStepTypes[1 + rng.below(2)]),
        state_dtype(rng.below(2) ? DType::f32 : test::kStepTypes[rng.below(3)]),
        slots(test::random_slots(T, S, rng)) {
    if (rng.below(3) == 0) eps = 1e-6f;
    uz = rounded(test::random_normal({T, 2 * E}, rng), dtype);
    dt_B_C = rounded(test::random_normal({T, R + 2 * kN}, rng), dtype);
    dt_proj = rounded(test::random_normal({E, R}, rng, 1 / std::sqrt(static_cast<float>(R))), dtype);
    dt_bias = test::random_normal({E}, rng, 0.5f, -2.0f);
    A = test::random_normal({E, kN}, rng);
    for (float& a : A.values<float>()) a = -0.2f - std::abs(a);
    D = test::random_normal({E}, rng);
    state = rounded(test::random_normal({S, kN, E}, rng), state_dtype);
    const Tensor there = on_card(uz, dtype);
    args = {.u = there.slice(1, 0, E),
            .z = there.slice(1, E, 2 * E),
            .dt_B_C = on_card(dt_B_C, dtype),
            .dt_proj = on_card(dt_proj, dtype),
            .dt_bias = on_card(dt_bias),
            .A = channels_contiguous_on_card(A),
            .D = on_card(D),
            .dt_B_C_eps = eps};
  }
  // Row t of y; the state's row as it then is.
  Doubles expected(int64_t t, Doubles& h) const {
    const Doubles row = to_doubles(uz.select(0, t));
    const auto [dt, B, C] = test::taken_apart(to_doubles(dt_B_C.select(0, t)), R, kN, eps);
    return reference::selective_scan<double>(
        {.E = static_cast<size_t>(E),
         .N = static_cast<size_t>(kN),
         .u = {row.begin(), row.begin() + E},
         .delta = reference::linear<double>(dt, to_doubles(dt_proj), {}, 1, E, R),
         .A = to_doubles(A),
         .B = B,
         .C = C,
         .D = to_doubles(D),
         .z = {row.begin() + E, row.end()},
         .delta_bias = to_doubles(dt_bias)},
        h);
  }
  std::string name() const {
    return fmt::format("T {} E {} R {} {} state {} eps {}", T, E, R, name_of(dtype), name_of(state_dtype),
                       eps);
  }
};

TEST(DtScanStepCuda, EqualsTheOpsItFuses) {
  SSM_NEED_CUDA();
  Rng rng(43);
  for (int trial = 0; trial < 60; ++trial) {
    const Case c(rng, trial % 4 ? 40 : 150);
    const SequenceBatch batch = SequenceBatch::steps(c.slots);
    const Tensor state = on_card(c.state, c.state_dtype);
    ASSERT_TRUE(has_dt_scan_step(c.args, batch, state)) << c.name();
    const Tensor y = dt_scan_step(c.args, batch, state).to(kCpu).to(DType::f32);
    const Tensor h = state.to(kCpu).to(DType::f32);
    for (int64_t s = 0; s < c.S; ++s) {
      Doubles after = to_doubles(c.state.select(0, s));
      const auto at = std::find(c.slots.begin(), c.slots.end(), s);
      if (at != c.slots.end()) {
        const int64_t t = at - c.slots.begin();
        const Doubles expected = c.expected(t, after);
        EXPECT_LT(relative_error(y.select(0, t), expected), 2e-5 + rounding_of(c.dtype)) << c.name();
      }
      EXPECT_LT(relative_error(h.select(0, s), after), 2e-5 + rounding_of(c.state_dtype)) << c.name();
    }
  }
}

TEST(DtScanStepCuda, ReplaysInAGraphWithTheSlotsOfTheCard) {
  SSM_NEED_CUDA();
  Rng rng(44);
  for (const int64_t rows : {1, 12, 90}) {
    const Case c(rng, rows);
    const Tensor slots = Tensor::from_values<int32_t>(c.slots, {c.T}).to(kCuda);
    const SequenceBatch batch = SequenceBatch::steps_on_device(slots);
    const Tensor state = on_card(c.state), again = on_card(c.state);
    Tensor y, y_again;
    Arena arena;
    const ArenaScope scope(&arena);
    dt_scan_step(c.args, batch, on_card(c.state));
    const Graph graph([&] { y = dt_scan_step(c.args, batch, state); });
    for (int step = 0; step < 3; ++step) {
      graph.replay();
      y_again = dt_scan_step(c.args, batch, again);
      EXPECT_TRUE(same_bits(y.to(kCpu), y_again.to(kCpu))) << c.name() << " step " << step;
    }
    EXPECT_TRUE(same_bits(state.to(kCpu), again.to(kCpu)));
  }
}

}  // namespace
}  // namespace ssm
