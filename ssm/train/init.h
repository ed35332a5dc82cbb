// The parameters of a model that is trained from scratch.
#pragma once

#include <cstdint>
#include <string_view>

#include "ssm/models/causal_lm.h"

namespace ssm::train {

// reference: what the authors' code does (mamba_ssm): embeddings N(0, 0.02); in_proj, x_proj and lm_head
// uniform within 1/sqrt(in); out_proj the same over sqrt(layers), so that the residual does not grow with
// depth. huggingface: Transformers' _init_weights: all of these but out_proj N(0, 0.1), out_proj without the
// division, biases of the convolution zero, Mamba-2's A counted up with the heads. Both: the time step
// log-uniform in [0.001, 0.1] through dt's bias, A = -1 .. -N (Mamba-1), D = 1. Of hybrids what an MLP gives
// out is as out_proj, and both are over sqrt(2 layers). GPT-NeoX's matrices are N(0, 0.02) in both.
enum class InitScheme { reference, huggingface };

// Sets every parameter, f32 on the CPU, and prepares the model. A value depends on the seed, the parameter's
// name and its place alone. `config` is the one the model was made of.
void initialise(CausalLm& model, const nlohmann::json& config, InitScheme scheme, uint64_t seed);

}  // namespace ssm::train
