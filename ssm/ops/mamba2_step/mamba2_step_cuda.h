#pragma once

#include "ssm/ops/mamba2_step/mamba2_step.h"

namespace ssm::cuda {

bool has_mamba2_step(const Mamba2StepArgs& args, const SequenceBatch& batch, const Tensor& ssm_state);
void mamba2_step(const Mamba2StepArgs& args, const SequenceBatch& batch, const Tensor& conv_state,
                 const Tensor& ssm_state, const Tensor& residual);

}  // namespace ssm::cuda
