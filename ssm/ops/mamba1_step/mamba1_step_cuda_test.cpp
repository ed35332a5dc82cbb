// mamba1_step against the f64 references of the ops it fuses.
#include "ssm/ops/causal_conv1d/causal_conv1d_reference.h"
#include "ssm/ops/cuda/step_test.h"
#include "ssm/ops/linear/linear_reference.h"
#include "ssm/ops/mamba1_step/mamba1_step.h"
#include "ssm/ops/rms_norm/rms_norm_reference.h"
#include "ssm/ops/selective_scan/selective_scan_reference.h"

namespace ssm {
namespace {

using test::channels_contiguous_on_card;
using test::Doubles;
using test::handed;
using test::on_card;
using test::rounded;
using test::to_doubles;

struct Case {
  int64_t T, M, E, N, R, S;
  DType dtype, state_dtype;
  Tensor residual, norm_weight, in_proj, in_bias, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D,
      out_proj, out_bias, conv_state, ssm_state;  // on the host
  std::vector<int32_t> slots;
  float eps = 0;
  Mamba1StepArgs args;  // on the card

  explicit Case(Rng& rng) {
    T = 1 + rng.below(rng.below(3) ? 8 : 2);
    M = 8 * (1 + rng.below(rng.below(16) ? 40 : 800));
    E = 8 * (1 + rng.below(rng.below(4) ? 60 : 300)), N = 4 * (1 + rng.below(8));
    R = 8 * (1 + rng.below(rng.below(4) ? 8 : 40)), S = T + rng.below(4);
    dtype = test::kStepTypes[rng.below(3)];
    state_dtype = rng.below(2) ? DType::f32 : test::kStepTypes[rng.below(3)];
    if (rng.below(3) == 0) eps = 1e-6f;
    residual = test::random_normal({T, M}, rng, 3.0f);
    norm_weight = test::random_normal({M}, rng, 0.3f, 1.0f);
    in_proj = rounded(test::random_normal({2 * E, M}, rng, 1 / std::sqrt(static_cast<float>(M))), dtype);
    if (rng.below(3) == 0) in_bias = test::random_normal({2 * E}, rng, 0.3f);
    conv_weight = test::random_normal({E, 4}, rng, 0.5f);
    if (rng.below(2)) conv_bias = test::random_normal({E}, rng, 0.2f);
    const float scale = 1 / std::sqrt(static_cast<float>(E));
    x_proj = rounded(test::random_normal({R + 2 * N, E}, rng, 2 * scale), dtype);
    dt_proj = rounded(test::random_normal({E, R}, rng, 1 / std::sqrt(static_cast<float>(R))), dtype);
    dt_bias = test::random_normal({E}, rng, 0.5f, -2.0f);
    A = test::random_normal({E, N}, rng);
    for (float& a : A.values<float>()) a = -0.2f - std::abs(a);
    D = test::random_normal({E}, rng);
    out_proj = rounded(test::random_normal({M, E}, rng, 30 * scale), dtype);
    if (rng.below(3) == 0) out_bias = test::random_normal({M}, rng, 10.0f);
    conv_state = test::random_normal({S, 3, E}, rng);
    ssm_state = rounded(test::random_normal({S, N, E}, rng), state_dtype);
    slots = test::random_slots(T, S, rng);
    // Dense, or packed as load/quantization.h plans it.
    const std::string_view large = std::array{"", "", "int4", "int8"}[rng.below(4)];
    const std::string_view small = large.empty() || rng.below(4) == 0 ? "" : "int8";
    const int64_t group = 32 << rng.below(3);
    args = {.compute = dtype,
            .norm_weight = on_card(norm_weight),
            .norm_eps = 1e-5f,
            .in_proj = test::step_weight(in_proj, dtype, large, group),
            .in_bias = on_card(in_bias),
            .conv_weight = channels_contiguous_on_card(conv_weight),
            .conv_bias = on_card(conv_bias),
            .x_proj = test::step_weight(x_proj, dtype, small, group),
            .dt_proj = test::step_weight(dt_proj, dtype, small, group),
            .dt_bias = on_card(dt_bias),
            .A = channels_contiguous_on_card(A),
            .D = on_card(D),
            .out_proj = test::step_weight(out_proj, dtype, large, group),
            .out_bias = on_card(out_bias),
            .dt_B_C_eps = eps};
  }
  bool taken() const { return has_mamba1_step(args, SequenceBatch::steps(slots)); }
  void take(const SequenceBatch& batch, const Tensor& conv, const Tensor& ssm, const Tensor& to) const {
    mamba1_step(args, batch, conv, ssm, to);
  }
  // What row t adds to the residual; the states' rows as they then are.
  Doubles expected(int64_t t, Doubles& window, Doubles& h) const {
    const Doubles x = handed(reference::rms_norm<double>(to_doubles(residual.slice(0, t, t + 1)),
                                                         to_doubles(norm_weight), M, 1, 1e-5f),
                             dtype);
    const Doubles row =
        handed(reference::linear<double>(x, to_doubles(in_proj), optional(in_bias), 1, 2 * E, M), dtype);
    const Doubles u =
        handed(reference::causal_conv1d<double>({row.begin(), row.begin() + E}, to_doubles(conv_weight),
                                                optional(conv_bias), Activation::silu, E, 4, window),
               dtype);
    const Doubles p = handed(reference::linear<double>(u, to_doubles(x_proj), {}, 1, R + 2 * N, E), dtype);
    const auto [dt, B, C] = test::taken_apart(p, R, N, eps);
    const Doubles y = handed(reference::selective_scan<double>(
                                 {.E = static_cast<size_t>(E),
                                  .N = static_cast<size_t>(N),
                                  .u = u,
                                  .delta = reference::linear<double>(dt, to_doubles(dt_proj), {}, 1, E, R),
                                  .A = to_doubles(A),
                                  .B = B,
                                  .C = C,
                                  .D = to_doubles(D),
                                  .z = {row.begin() + E, row.end()},
                                  .delta_bias = to_doubles(dt_bias)},
                                 h),
                             dtype);
    return reference::linear<double>(y, to_doubles(out_proj), optional(out_bias), 1, M, E);
  }
  static Doubles optional(const Tensor& t) { return t.defined() ? to_doubles(t) : Doubles{}; }
  std::string name() const {
    return fmt::format("T {} M {} E {} N {} R {} {} state {} eps {} weights {}, {}", T, M, E, N, R,
                       name_of(dtype), name_of(state_dtype), eps, type_name(args.in_proj),
                       type_name(args.dt_proj));
  }
};

TEST(Mamba1StepCuda, EqualsTheOpsItFuses) {
  SSM_NEED_CUDA();
  Rng rng(41);
  int taken = 0;
  for (int trial = 0; trial < 120; ++trial) {
    const Case c(rng);
    if (!c.taken()) continue;
    ++taken;
    test::expect_the_reference(c);
  }
  EXPECT_GT(taken, 80);
}

TEST(Mamba1StepCuda, ReplaysInAGraphWithTheSlotsOfTheCard) {
  SSM_NEED_CUDA();
  Rng rng(42);
  for (int trial = 0; trial < 4; ++trial) test::expect_replays(Case(rng));
}

}  // namespace
}  // namespace ssm
