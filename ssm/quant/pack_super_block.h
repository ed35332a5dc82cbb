// Blocks of 256 weights whose runs' scales are codes themselves: two levels, fitted in turn.
#pragma once

#include "ssm/quant/fit.h"

namespace ssm {

// `block` has 256 weights; each writes a whole block of its type.
void pack_q4_k(const Run& block, uint8_t* out);
void pack_q5_k(const Run& block, uint8_t* out);
void pack_q6_k(const Run& block, uint8_t* out);

}  // namespace ssm
