// mamba2_step against the f64 references of the ops it fuses.
#include "ssm/ops/causal_conv1d/causal_conv1d_reference.h"
#include "ssm/ops/cuda/step_test.h"
#include "ssm/ops/linear/linear_reference.h"
#include "ssm/ops/mamba2_step/mamba2_step.h"
#include "ssm/ops/rms_norm/rms_norm_reference.h"
#include "ssm/ops/ssd_scan/ssd_scan_reference.h"

namespace ssm {
namespace {

using test::channels_contiguous_on_card;
using test::Doubles;
using test::handed;
using test::on_card;
using test::rounded;
using test::to_doubles;

struct Case {
  int64_t T, M, H, N, P, G, E, C, S;
  DType dtype, state_dtype;
  Tensor residual, norm_weight, in_proj, in_bias, conv_weight, conv_bias, A, dt_bias, D, gate_weight,
      out_proj, out_bias, conv_state, ssm_state;  // on the host
  std::vector<int32_t> slots;
  float dt_min = 0, dt_max = std::numeric_limits<float>::infinity();
  Mamba2StepArgs args;  // on the card

  explicit Case(Rng& rng) {
    G = 1 + rng.below(2), H = G * (1 + rng.below(rng.below(4) ? 4 : 20)), P = 16 * (1 + rng.below(5));
    N = 1 + rng.below(rng.below(4) ? 140 : 256), T = 1 + rng.below(rng.below(3) ? 8 : 2);
    M = 8 * (1 + rng.below(rng.below(16) ? 40 : 800)), S = T + rng.below(4);
    E = H * P, C = E + 2 * G * N;
    dtype = test::kStepTypes[rng.below(3)];
    state_dtype = rng.below(2) ? DType::f32 : test::kStepTypes[rng.below(3)];
    if (rng.below(3) == 0) dt_min = 0.05f, dt_max = 0.3f;
    residual = test::random_normal({T, M}, rng, 3.0f);
    norm_weight = test::random_normal({M}, rng, 0.3f, 1.0f);
    in_proj = rounded(test::random_normal({E + C + H, M}, rng, 1 / std::sqrt(static_cast<float>(M))), dtype);
    if (rng.below(3) == 0) in_bias = test::random_normal({E + C + H}, rng, 0.3f);
    conv_weight = test::random_normal({C, 4}, rng, 0.5f);
    if (rng.below(2)) conv_bias = test::random_normal({C}, rng, 0.2f);
    A = test::random_normal({H}, rng);
    for (float& a : A.values<float>()) a = -0.2f - std::abs(a);
    dt_bias = test::random_normal({H}, rng, 0.5f, -1.0f);
    D = test::random_normal({rng.below(2) ? H : E}, rng);
    gate_weight = test::random_normal({E}, rng, 0.3f, 1.0f);
    out_proj = rounded(test::random_normal({M, E}, rng, 30 / std::sqrt(static_cast<float>(E))), dtype);
    if (rng.below(3) == 0) out_bias = test::random_normal({M}, rng, 10.0f);
    conv_state = test::random_normal({S, 3, C}, rng);
    ssm_state = rounded(test::random_normal({S, H, N, P}, rng), state_dtype);
    slots = test::random_slots(T, S, rng);
    const std::string_view type = std::array{"", "", "int4", "int8"}[rng.below(4)];
    const int64_t group = 32 << rng.below(3);
    args = {.compute = dtype,
            .norm_weight = on_card(norm_weight),
            .norm_eps = 1e-5f,
            .in_proj = test::step_weight(in_proj, dtype, type, group),
            .in_bias = on_card(in_bias),
            .conv_weight = channels_contiguous_on_card(conv_weight),
            .conv_bias = on_card(conv_bias),
            .A = on_card(A),
            .dt_bias = on_card(dt_bias),
            .D = on_card(D),
            .gate_weight = on_card(gate_weight),
            .gate_eps = 1e-5f,
            .out_proj = test::step_weight(out_proj, dtype, type, group),
            .out_bias = on_card(out_bias),
            .groups = G,
            .dt_min = dt_min,
            .dt_max = dt_max};
  }
  bool taken() const { return has_mamba2_step(args, SequenceBatch::steps(slots), on_card(ssm_state)); }
  void take(const SequenceBatch& batch, const Tensor& conv, const Tensor& ssm, const Tensor& to) const {
    mamba2_step(args, batch, conv, ssm, to);
  }
  // What row t adds to the residual; the states' rows as they then are.
  Doubles expected(int64_t t, Doubles& window, Doubles& h) const {
    const Doubles u = handed(reference::rms_norm<double>(to_doubles(residual.slice(0, t, t + 1)),
                                                         to_doubles(norm_weight), M, 1, 1e-5f),
                             dtype);
    const Doubles row =
        handed(reference::linear<double>(u, to_doubles(in_proj), optional(in_bias), 1, E + C + H, M), dtype);
    const Doubles xBC = handed(
        reference::causal_conv1d<double>({row.begin() + E, row.begin() + E + C}, to_doubles(conv_weight),
                                         optional(conv_bias), Activation::silu, C, 4, window),
        dtype);
    const Doubles y = handed(reference::ssd_scan<double>({.H = static_cast<size_t>(H),
                                                          .P = static_cast<size_t>(P),
                                                          .G = static_cast<size_t>(G),
                                                          .N = static_cast<size_t>(N),
                                                          .x = {xBC.begin(), xBC.begin() + E},
                                                          .dt = {row.begin() + E + C, row.end()},
                                                          .A = to_doubles(A),
                                                          .B = {xBC.begin() + E, xBC.begin() + E + G * N},
                                                          .C = {xBC.begin() + E + G * N, xBC.end()},
                                                          .D = to_doubles(D),
                                                          .dt_bias = to_doubles(dt_bias),
                                                          .dt_min = dt_min,
                                                          .dt_max = dt_max},
                                                         h),
                             dtype);
    const Doubles normed = handed(reference::gated_rms_norm<double>(y, {row.begin(), row.begin() + E},
                                                                    to_doubles(gate_weight), E, G, 1e-5f),
                                  dtype);
    return reference::linear<double>(normed, to_doubles(out_proj), optional(out_bias), 1, M, E);
  }
  static Doubles optional(const Tensor& t) { return t.defined() ? to_doubles(t) : Doubles{}; }
  std::string name() const {
    return fmt::format("T {} M {} H {} N {} P {} G {} {} state {} weights {}", T, M, H, N, P, G,
                       name_of(dtype), name_of(state_dtype), type_name(args.in_proj));
  }
};

TEST(Mamba2StepCuda, EqualsTheOpsItFuses) {
  SSM_NEED_CUDA();
  Rng rng(51);
  int taken = 0;
  for (int trial = 0; trial < 120; ++trial) {
    const Case c(rng);
    if (!c.taken()) continue;
    ++taken;
    test::expect_the_reference(c);
  }
  EXPECT_GT(taken, 80);
}

TEST(Mamba2StepCuda, ReplaysInAGraphWithTheSlotsOfTheCard) {
  SSM_NEED_CUDA();
  Rng rng(52);
  for (int trial = 0; trial < 4; ++trial) test::expect_replays(Case(rng));
}

}  // namespace
}  // namespace ssm
