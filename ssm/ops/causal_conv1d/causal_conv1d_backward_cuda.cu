#include "ssm/core/error.h"
#include "ssm/ops/causal_conv1d/causal_conv1d_cuda.h"

namespace ssm::cuda {

void causal_conv1d_backward(const Tensor&, const Tensor&, const Tensor&, Activation, const SequenceBatch&,
                            const Tensor&, const Tensor&, const CausalConv1dGrads&) {
  fail("{}", "causal_conv1d: no gradient on a card yet");
}

}  // namespace ssm::cuda
