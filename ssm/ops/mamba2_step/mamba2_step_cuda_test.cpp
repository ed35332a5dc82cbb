// mamba2_step against the f64 references of the ops it fuses.
#include "ssm/core/graph.h"
#include "ssm/ops/causal_conv1d/causal_conv1d_reference.h"
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/ops/linear/linear_reference.h"
#include "ssm/ops/mamba2_step/mamba2_step.h"
#include "ssm/ops/rms_norm/rms_norm_reference.h"
#include "ssm/ops/ssd_scan/ssd_scan_reference.h"

namespace ssm {
namespace {

using test::on_card;
using test::rounded;
using test::to_doubles;
using Doubles = std::vector<double>;

constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};

// [K, C] in memory, to be seen as [C, K]: as models keep what kernels walk by channels.
Tensor channels_contiguous(const Tensor& x) {
  Tensor t = Tensor::empty({x.size(1), x.size(0)});
  for (int64_t e = 0; e < x.size(0); ++e)
    for (int64_t n = 0; n < x.size(1); ++n)
      t.data<float>()[n * x.size(0) + e] = x.data<float>()[e * x.size(1) + n];
  return t;
}

struct Case {
  int64_t T, M, H, N, P, G, E, C, S;
  DType dtype, state_dtype;
  Tensor u, in_proj, in_bias, conv_weight, conv_bias, A, dt_bias, D, norm_weight, conv_state,
      ssm_state;  // on the host
  std::vector<int32_t> slots;
  float dt_min = 0, dt_max = std::numeric_limits<float>::infinity();

  explicit Case(Rng& rng) {
    G = 1 + rng.below(2), H = G * (1 + rng.below(rng.below(4) ? 4 : 20)), P = 16 * (1 + rng.below(5));
    N = 1 + rng.below(rng.below(4) ? 140 : 256), T = 1 + rng.below(8), M = 8 * (1 + rng.below(40)),
    S = T + rng.below(4);
    E = H * P, C = E + 2 * G * N;
    dtype = kTypes[rng.below(3)], state_dtype = rng.below(2) ? DType::f32 : kTypes[rng.below(3)];
    if (rng.below(3) == 0) dt_min = 0.05f, dt_max = 0.3f;
    u = rounded(test::random_normal({T, M}, rng), dtype);
    in_proj = rounded(test::random_normal({E + C + H, M}, rng, 1 / std::sqrt(static_cast<float>(M))), dtype);
    if (rng.below(3) == 0) in_bias = test::random_normal({E + C + H}, rng, 0.3f);
    conv_weight = test::random_normal({C, 4}, rng, 0.5f);
    if (rng.below(2)) conv_bias = test::random_normal({C}, rng, 0.2f);
    A = test::random_normal({H}, rng);
    for (float& a : A.values<float>()) a = -0.2f - std::abs(a);
    dt_bias = test::random_normal({H}, rng, 0.5f, -1.0f);
    D = test::random_normal({rng.below(2) ? H : E}, rng);
    norm_weight = test::random_normal({E}, rng, 0.3f, 1.0f);
    conv_state = test::random_normal({S, 3, C}, rng);
    ssm_state = rounded(test::random_normal({S, H, N, P}, rng), state_dtype);
    for (int64_t s = 0; s < S; ++s) slots.push_back(static_cast<int32_t>(s));
    for (int64_t i = 0; i < T; ++i) std::swap(slots[i], slots[i + rng.below(S - i)]);
    slots.resize(T);
  }
  Mamba2StepArgs upload() const {
    return {.u = on_card(u, dtype),
            .in_proj = on_card(in_proj, dtype),
            .in_bias = on_card(in_bias),
            .conv_weight = on_card(channels_contiguous(conv_weight)).transpose(0, 1),
            .conv_bias = on_card(conv_bias),
            .A = on_card(A),
            .dt_bias = on_card(dt_bias),
            .D = on_card(D),
            .norm_weight = on_card(norm_weight),
            .groups = G,
            .dt_min = dt_min,
            .dt_max = dt_max,
            .norm_eps = 1e-5f};
  }
  // The result's row t; the states' rows as they then are.
  Doubles expected(int64_t t, Doubles& window, Doubles& h) const {
    const Doubles row = handed(
        reference::linear<double>(to_doubles(u.slice(0, t, t + 1)), to_doubles(in_proj),
                                  in_bias.defined() ? to_doubles(in_bias) : Doubles{}, 1, E + C + H, M));
    const Doubles xBC = handed(reference::causal_conv1d<double>(
        {row.begin() + E, row.begin() + E + C}, to_doubles(conv_weight),
        conv_bias.defined() ? to_doubles(conv_bias) : Doubles{}, Activation::silu, C, 4, window));
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
                                                         h));
    return reference::gated_rms_norm<double>(y, {row.begin(), row.begin() + E}, to_doubles(norm_weight), E, G,
                                             1e-5f);
  }
  // What one op would hand to the next is rounded to the activations' type.
  Doubles handed(const Doubles& values) const {
    Tensor t = Tensor::empty({std::ssize(values)});
    std::copy(values.begin(), values.end(), t.data<float>());
    return to_doubles(rounded(t, dtype));
  }
  // In 16 bits a sum may round what is handed on to a neighbour of the reference's, half a unit or one away.
  double bound() const { return 2e-5 + (dtype == DType::f32 ? 0 : 5 * test::rounding_of(dtype)); }
  std::string name() const {
    return fmt::format("T {} H {} N {} P {} G {} {} state {}", T, H, N, P, G, name_of(dtype),
                       name_of(state_dtype));
  }
};

TEST(Mamba2StepCuda, EqualsTheOpsItFuses) {
  SSM_NEED_CUDA();
  Rng rng(51);
  int taken = 0;
  for (int trial = 0; trial < 120; ++trial) {
    const Case c(rng);
    const Mamba2StepArgs args = c.upload();
    const SequenceBatch batch = SequenceBatch::steps(c.slots);
    if (!has_mamba2_step(args, batch, on_card(c.ssm_state))) continue;
    ++taken;
    const Tensor conv_state = on_card(c.conv_state), ssm_state = on_card(c.ssm_state, c.state_dtype);
    const Tensor y = mamba2_step(args, batch, conv_state, ssm_state).to(kCpu);
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

TEST(Mamba2StepCuda, ReplaysInAGraphWithTheSlotsOfTheCard) {
  SSM_NEED_CUDA();
  Rng rng(52);
  const Case c(rng);
  const Mamba2StepArgs args = c.upload();
  const Tensor slots = Tensor::from_values<int32_t>(c.slots, {c.T}).to(kCuda);
  const SequenceBatch batch = SequenceBatch::steps_on_device(slots);
  const Tensor conv_state = on_card(c.conv_state), ssm_state = on_card(c.ssm_state);
  const Tensor conv_again = on_card(c.conv_state), ssm_again = on_card(c.ssm_state);
  Tensor y;
  mamba2_step(args, batch, conv_again.clone(), ssm_again.clone());
  Arena arena;
  {
    const ArenaScope scope(&arena);
    mamba2_step(args, batch, conv_again.clone(), ssm_again.clone());
    const Graph graph([&] { y = mamba2_step(args, batch, conv_state, ssm_state); });
    for (int step = 0; step < 3; ++step) {
      graph.replay();
      const Tensor captured = y.to(kCpu);
      const Tensor eager = mamba2_step(args, batch, conv_again, ssm_again).to(kCpu);
      EXPECT_TRUE(test::same_bits(captured, eager)) << c.name() << " step " << step;
    }
    y = {};
  }
  EXPECT_TRUE(test::same_bits(conv_state.to(kCpu), conv_again.to(kCpu)));
  EXPECT_TRUE(test::same_bits(ssm_state.to(kCpu), ssm_again.to(kCpu)));
}

}  // namespace
}  // namespace ssm
