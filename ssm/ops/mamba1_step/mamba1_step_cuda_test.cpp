// mamba1_step against the f64 references of the ops it fuses.
#include "ssm/core/graph.h"
#include "ssm/ops/causal_conv1d/causal_conv1d_reference.h"
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/ops/linear/linear_reference.h"
#include "ssm/ops/mamba1_step/mamba1_step.h"
#include "ssm/ops/rms_norm/rms_norm_reference.h"
#include "ssm/ops/selective_scan/selective_scan_reference.h"

namespace ssm {
namespace {

using test::on_card;
using test::rounded;
using test::to_doubles;
using Doubles = std::vector<double>;

constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};

// A [N, E] in memory, seen as [E, N]: as models keep what kernels walk by channels.
Tensor channels_contiguous(const Tensor& x) {
  Tensor t = Tensor::empty({x.size(1), x.size(0)});
  for (int64_t e = 0; e < x.size(0); ++e)
    for (int64_t n = 0; n < x.size(1); ++n)
      t.data<float>()[n * x.size(0) + e] = x.data<float>()[e * x.size(1) + n];
  return t;
}

struct Case {
  int64_t T, M, E, N, R, S;
  DType dtype, state_dtype;
  Tensor x, in_proj, in_bias, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, conv_state,
      ssm_state;  // on the host
  std::vector<int32_t> slots;
  float eps = 0;

  explicit Case(Rng& rng) {
    T = 1 + rng.below(8), M = 8 * (1 + rng.below(40)), E = 8 * (1 + rng.below(rng.below(4) ? 60 : 300)),
    N = 4 * (1 + rng.below(8));
    R = 8 * (1 + rng.below(rng.below(4) ? 8 : 40)), S = T + rng.below(4);
    dtype = kTypes[rng.below(3)], state_dtype = rng.below(2) ? DType::f32 : kTypes[rng.below(3)];
    if (rng.below(3) == 0) eps = 1e-6f;
    x = rounded(test::random_normal({T, M}, rng), dtype);
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
    conv_state = test::random_normal({S, 3, E}, rng);
    ssm_state = rounded(test::random_normal({S, N, E}, rng), state_dtype);
    for (int64_t s = 0; s < S; ++s) slots.push_back(static_cast<int32_t>(s));
    for (int64_t i = 0; i < T; ++i) std::swap(slots[i], slots[i + rng.below(S - i)]);
    slots.resize(T);
  }
  Mamba1StepArgs upload() const {
    return {.x = on_card(x, dtype),
            .in_proj = on_card(in_proj, dtype),
            .in_bias = on_card(in_bias),
            .conv_weight = on_card(channels_contiguous(conv_weight)).transpose(0, 1),
            .conv_bias = on_card(conv_bias),
            .x_proj = on_card(x_proj, dtype),
            .dt_proj = on_card(dt_proj, dtype),
            .dt_bias = on_card(dt_bias),
            .A = on_card(channels_contiguous(A)).transpose(0, 1),
            .D = on_card(D),
            .norm_eps = eps};
  }
  // What one op hands to the next is rounded to the activations' type.
  Doubles handed(const Doubles& values) const {
    Tensor t = Tensor::empty({std::ssize(values)});
    std::copy(values.begin(), values.end(), t.data<float>());
    return to_doubles(rounded(t, dtype));
  }
  // y of row t; the states' rows as they then are.
  Doubles expected(int64_t t, Doubles& window, Doubles& h) const {
    const Doubles row =
        handed(reference::linear<double>(to_doubles(x.slice(0, t, t + 1)), to_doubles(in_proj),
                                         in_bias.defined() ? to_doubles(in_bias) : Doubles{}, 1, 2 * E, M));
    const Doubles u = handed(reference::causal_conv1d<double>(
        {row.begin(), row.begin() + E}, to_doubles(conv_weight),
        conv_bias.defined() ? to_doubles(conv_bias) : Doubles{}, Activation::silu, E, 4, window));
    const Doubles p = handed(reference::linear<double>(u, to_doubles(x_proj), {}, 1, R + 2 * N, E));
    Doubles dt(p.begin(), p.begin() + R), B(p.begin() + R, p.begin() + R + N), C(p.begin() + R + N, p.end());
    if (eps > 0) {
      for (Doubles* v : {&dt, &B, &C}) *v = reference::rms_norm<double>(*v, {}, std::ssize(*v), 1, eps);
    }
    return reference::selective_scan<double>(
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
        h);
  }
  // In 16 bits a sum may round u, u' or dt, B, C to a neighbour of the reference's, half a unit or one away.
  double bound() const { return 2e-5 + (dtype == DType::f32 ? 0 : 5 * test::rounding_of(dtype)); }
  std::string name() const {
    return fmt::format("T {} E {} N {} R {} {} state {} eps {}", T, E, N, R, name_of(dtype),
                       name_of(state_dtype), eps);
  }
};

TEST(Mamba1StepCuda, EqualsTheOpsItFuses) {
  SSM_NEED_CUDA();
  Rng rng(41);
  int taken = 0;
  for (int trial = 0; trial < 120; ++trial) {
    const Case c(rng);
    const Mamba1StepArgs args = c.upload();
    const SequenceBatch batch = SequenceBatch::steps(c.slots);
    if (!has_mamba1_step(args, batch)) continue;
    ++taken;
    const Tensor conv_state = on_card(c.conv_state), ssm_state = on_card(c.ssm_state, c.state_dtype);
    const Tensor y = mamba1_step(args, batch, conv_state, ssm_state).to(kCpu);
    const Tensor windows = conv_state.to(kCpu), h = ssm_state.to(kCpu).to(DType::f32);
    for (int64_t s = 0; s < c.S; ++s) {
      Doubles window = to_doubles(c.conv_state.select(0, s)), state = to_doubles(c.ssm_state.select(0, s));
      const auto at = std::find(c.slots.begin(), c.slots.end(), s);
      if (at != c.slots.end()) {
        const int64_t t = at - c.slots.begin();
        const Doubles expected = c.expected(t, window, state);
        EXPECT_LT(test::relative_error(y.slice(0, t, t + 1), expected), c.bound()) << c.name();
      }
      EXPECT_LT(test::relative_error(windows.select(0, s), window), at == c.slots.end() ? 1e-30 : c.bound())
          << c.name();
      EXPECT_LT(test::relative_error(h.select(0, s), state), c.bound() + test::rounding_of(c.state_dtype))
          << c.name();
    }
  }
  EXPECT_GT(taken, 80);
}

TEST(Mamba1StepCuda, ReplaysInAGraphWithTheSlotsOfTheCard) {
  SSM_NEED_CUDA();
  Rng rng(42);
  const Case c(rng);
  const Mamba1StepArgs args = c.upload();
  const Tensor slots = Tensor::from_values<int32_t>(c.slots, {c.T}).to(kCuda);
  const SequenceBatch batch = SequenceBatch::steps_on_device(slots);
  const Tensor conv_state = on_card(c.conv_state), ssm_state = on_card(c.ssm_state);
  const Tensor conv_again = on_card(c.conv_state), ssm_again = on_card(c.ssm_state);
  Tensor y;
  mamba1_step(args, batch, conv_again.clone(), ssm_again.clone());
  Arena arena;
  {
    const ArenaScope scope(&arena);
    mamba1_step(args, batch, conv_again.clone(), ssm_again.clone());
    const Graph graph([&] { y = mamba1_step(args, batch, conv_state, ssm_state); });
    for (int step = 0; step < 3; ++step) {
      graph.replay();
      const Tensor captured = y.to(kCpu);
      const Tensor eager = mamba1_step(args, batch, conv_again, ssm_again).to(kCpu);
      EXPECT_TRUE(test::same_bits(captured, eager)) << c.name() << " step " << step;
    }
    y = {};
  }
  EXPECT_TRUE(test::same_bits(conv_state.to(kCpu), conv_again.to(kCpu)));
  EXPECT_TRUE(test::same_bits(ssm_state.to(kCpu), ssm_again.to(kCpu)));
}

}  // namespace
}  // namespace ssm
