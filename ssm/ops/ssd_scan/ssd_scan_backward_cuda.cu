#include "ssm/core/error.h"
#include "ssm/ops/ssd_scan/ssd_scan_cuda.h"

namespace ssm::cuda {

void ssd_scan_backward(const SsdScanArgs&, const SequenceBatch&, const Tensor&, const Tensor&,
                       const SsdScanGrads&) {
  fail("{}", "ssd_scan: no gradient on a card yet");
}

}  // namespace ssm::cuda
