#include "ssm/core/error.h"
#include "ssm/ops/selective_scan/selective_scan_cuda.h"

namespace ssm::cuda {

void selective_scan_backward(const SelectiveScanArgs&, const SequenceBatch&, const Tensor&, const Tensor&,
                             const SelectiveScanGrads&) {
  fail("{}", "selective_scan: no gradient on a card yet");
}

}  // namespace ssm::cuda
