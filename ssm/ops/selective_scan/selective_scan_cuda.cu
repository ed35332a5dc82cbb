#include <algorithm>

#include "ssm/core/cuda.h"
#include "ssm/ops/selective_scan/selective_scan_cuda.cuh"

namespace ssm::cuda {

SelectiveScanOperands scan_operands(const SelectiveScanArgs& args, const SequenceBatch& batch) {
  const auto raw = [](const Tensor& t) { return t.defined() ? t.raw() : nullptr; };
  const auto floats = [](const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; };
  const auto stride = [](const Tensor& t) { return t.defined() ? t.stride(0) : 0; };
  const int64_t N = args.A.size(1);
  SSM_CHECK(N <= kMaxStates, "selective_scan: {} states a channel, a card takes up to {}", N, kMaxStates);
  return {.u = raw(args.u),
          .delta = raw(args.delta),
          .z = raw(args.z),
          .B = raw(args.B),
          .C = raw(args.C),
          .y = nullptr,
          .u_stride = stride(args.u),
          .delta_stride = stride(args.delta),
          .z_stride = stride(args.z),
          .B_stride = stride(args.B),
          .C_stride = stride(args.C),
          .y_stride = 0,
          .A = floats(args.A),
          .A_channel_stride = args.A.stride(0),
          .A_state_stride = args.A.stride(1),
          .D = floats(args.D),
          .delta_bias = floats(args.delta_bias),
          .delta_softplus = args.delta_softplus,
          .state = nullptr,
          .state_type = DType::f32,
          .E = args.A.size(0),
          .N = static_cast<int>(N),
          .batch = view_of(batch, args.u.device())};
}

void selective_scan(const SelectiveScanArgs& args, const SequenceBatch& batch, const Tensor& state,
                    const Tensor& y) {
  SelectiveScanOperands s = scan_operands(args, batch);
  s.y = y.raw(), s.y_stride = y.stride(0);
  if (state.defined()) s.state = state.raw(), s.state_type = state.dtype();
  if (s.E == 0) return;
  if (batch.is_step()) {
    selective_scan_step(s, args.u.dtype());
  } else {
    int64_t longest = 0;
    for (int64_t b = 0; b < batch.size(); ++b) longest = std::max(longest, batch.length(b));
    selective_scan_forward(s, args.u.dtype(), longest);
  }
}

}  // namespace ssm::cuda
