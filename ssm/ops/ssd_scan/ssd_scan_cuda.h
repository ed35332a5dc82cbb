#pragma once

#include "ssm/ops/ssd_scan/ssd_scan.h"

namespace ssm::cuda {

void ssd_scan(const SsdScanArgs& args, const SequenceBatch& batch, const Tensor& state, const Tensor& y);
void ssd_scan_backward(const SsdScanArgs& args, const SequenceBatch& batch, const Tensor& initial,
                       const Tensor& dy, const SsdScanGrads& grads, const Tensor& dlast);

}  // namespace ssm::cuda
