// What the tests of the fused steps of a layer share. A Case holds a layer's operands on the host (T, M, S,
// dtype, state_dtype, residual, conv_state, ssm_state, slots), uploads them, knows whether a step takes them
// and takes it, and has the f64 reference of one row.
#pragma once

#include "ssm/core/graph.h"
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/ops/rms_norm/rms_norm_reference.h"
#include "ssm/quant/card_layout.h"
#include "ssm/quant/dequantize.h"
#include "ssm/quant/quantize.h"
#include "ssm/quant/weight.h"

namespace ssm::test {

using Doubles = std::vector<double>;

inline constexpr DType kStepTypes[] = {DType::f32, DType::bf16, DType::f16};

// [C, K] as models keep what kernels walk by channels: [K, C] in memory.
inline Tensor channels_contiguous_on_card(const Tensor& x) {
  Tensor t = Tensor::empty({x.size(1), x.size(0)});
  for (int64_t c = 0; c < x.size(0); ++c)
    for (int64_t k = 0; k < x.size(1); ++k)
      t.data<float>()[k * x.size(0) + c] = x.data<float>()[c * x.size(1) + k];
  return on_card(t).transpose(0, 1);
}

// A layer's matrix as a step has it: of `dtype`, or packed as `type`; `w` becomes what that means.
inline Weight step_weight(Tensor& w, DType dtype, std::string_view type, int64_t group) {
  if (type.empty()) return on_card(w, dtype);
  const QuantizedTensor packed = quantize(w, *quant_format(type, group));
  w = dequantize(packed);
  return to_card(packed, kCuda);
}

// T distinct slots of S.
inline std::vector<int32_t> random_slots(int64_t T, int64_t S, Rng& rng) {
  std::vector<int32_t> slots;
  for (int64_t s = 0; s < S; ++s) slots.push_back(static_cast<int32_t>(s));
  for (int64_t i = 0; i < T; ++i) std::swap(slots[i], slots[i + rng.below(S - i)]);
  slots.resize(T);
  return slots;
}

// What one op hands to the next is rounded to the activations' type.
inline Doubles handed(const Doubles& values, DType dtype) {
  Tensor t = Tensor::empty({std::ssize(values)});
  std::copy(values.begin(), values.end(), t.data<float>());
  return to_doubles(rounded(t, dtype));
}

// A row [R + 2 N] of Mamba-1's x_proj; its parts are divided by their RMS where eps is above 0.
struct DtBC {
  Doubles dt, B, C;
};
inline DtBC taken_apart(const Doubles& row, int64_t R, int64_t N, float eps) {
  const auto B = row.begin() + R, C = B + N;
  DtBC parts{{row.begin(), B}, {B, C}, {C, row.end()}};
  if (eps > 0) {
    for (Doubles* v : {&parts.dt, &parts.B, &parts.C})
      *v = reference::rms_norm<double>(*v, {}, std::ssize(*v), 1, eps);
  }
  return parts;
}

// In 16 bits a sum may round what is handed on to a neighbour of the reference's, half a unit or one away.
inline double step_bound(DType dtype) { return 2e-5 + (dtype == DType::f32 ? 0 : 5 * rounding_of(dtype)); }

// What a step adds to the residual, and the states it leaves, of all slots.
template <class Case>
void expect_the_reference(const Case& c) {
  const Tensor conv_state = on_card(c.conv_state), ssm_state = on_card(c.ssm_state, c.state_dtype);
  const Tensor residual = on_card(c.residual);
  c.take(SequenceBatch::steps(c.slots), conv_state, ssm_state, residual);
  const Tensor windows = conv_state.to(kCpu), h = ssm_state.to(kCpu).to(DType::f32),
               after = residual.to(kCpu);
  const double bound = step_bound(c.dtype);
  for (int64_t s = 0; s < c.S; ++s) {
    Doubles window = to_doubles(c.conv_state.select(0, s)), state = to_doubles(c.ssm_state.select(0, s));
    const auto at = std::find(c.slots.begin(), c.slots.end(), s);
    if (at != c.slots.end()) {
      const int64_t t = at - c.slots.begin();
      const Doubles expected = c.expected(t, window, state);
      Tensor added = Tensor::empty({c.M});
      for (int64_t m = 0; m < c.M; ++m) {
        added.data<float>()[m] =
            after.data<float>()[t * c.M + m] - c.residual.template data<float>()[t * c.M + m];
      }
      EXPECT_LT(relative_error(added, expected), bound) << c.name();
    }
    EXPECT_LT(relative_error(windows.select(0, s), window), at == c.slots.end() ? 1e-30 : bound) << c.name();
    EXPECT_LT(relative_error(h.select(0, s), state), bound + rounding_of(c.state_dtype)) << c.name();
  }
}

// Captured with slots that stand on the card, steps give the bits of steps that are not.
template <class Case>
void expect_replays(const Case& c) {
  const Tensor slots = Tensor::from_values<int32_t>(c.slots, {c.T}).to(kCuda);
  const SequenceBatch batch = SequenceBatch::steps_on_device(slots);
  const Tensor conv_state = on_card(c.conv_state), ssm_state = on_card(c.ssm_state), y = on_card(c.residual);
  const Tensor conv_again = on_card(c.conv_state), ssm_again = on_card(c.ssm_state),
               again = on_card(c.residual);
  c.take(batch, conv_again.clone(), ssm_again.clone(), y.clone());
  Arena arena;
  {
    const ArenaScope scope(&arena);
    c.take(batch, conv_again.clone(), ssm_again.clone(), y.clone());
    const Graph graph([&] { c.take(batch, conv_state, ssm_state, y); });
    for (int step = 0; step < 3; ++step) {
      graph.replay();
      c.take(batch, conv_again, ssm_again, again);
      EXPECT_TRUE(same_bits(y.to(kCpu), again.to(kCpu))) << c.name() << " step " << step;
    }
  }
  EXPECT_TRUE(same_bits(conv_state.to(kCpu), conv_again.to(kCpu)));
  EXPECT_TRUE(same_bits(ssm_state.to(kCpu), ssm_again.to(kCpu)));
}

}  // namespace ssm::test
