#pragma once

#include "ssm/ops/selective_scan/selective_scan.h"

namespace ssm::cuda {

void selective_scan(const SelectiveScanArgs& args, const SequenceBatch& batch, const Tensor& state,
                    const Tensor& y);

}  // namespace ssm::cuda
