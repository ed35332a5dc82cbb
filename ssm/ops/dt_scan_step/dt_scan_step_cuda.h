#pragma once

#include "ssm/ops/dt_scan_step/dt_scan_step.h"

namespace ssm::cuda {

bool has_dt_scan_step(const DtScanStepArgs& args, const SequenceBatch& batch, const Tensor& ssm_state);
void dt_scan_step(const DtScanStepArgs& args, const SequenceBatch& batch, const Tensor& ssm_state,
                  const Tensor& y);

}  // namespace ssm::cuda
