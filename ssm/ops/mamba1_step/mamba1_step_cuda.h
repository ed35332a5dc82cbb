#pragma once

#include "ssm/ops/mamba1_step/mamba1_step.h"

namespace ssm::cuda {

bool has_mamba1_step(const Mamba1StepArgs& args, const SequenceBatch& batch);
void mamba1_step(const Mamba1StepArgs& args, const SequenceBatch& batch, const Tensor& conv_state,
                 const Tensor& ssm_state, const Tensor& residual);

}  // namespace ssm::cuda
