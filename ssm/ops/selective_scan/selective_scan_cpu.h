#pragma once

#include "ssm/ops/selective_scan/selective_scan.h"

namespace ssm::cpu {

void selective_scan(const SelectiveScanArgs& args, const SequenceBatch& batch, const Tensor& state,
                    const Tensor& y);
void selective_scan_backward(const SelectiveScanArgs& args, const SequenceBatch& batch, const Tensor& initial,
                             const Tensor& dy, const SelectiveScanGrads& grads);

}  // namespace ssm::cpu
