// adamw: one step of AdamW, in one pass over each parameter (Loshchilov & Hutter 2019, algorithm 2, with the
// schedule's factor in lr, as torch.optim.AdamW has it):
//
//   g <- g grad_scale
//   p <- p (1 - lr weight_decay)
//   m <- beta1 m + (1 - beta1) g
//   v <- beta2 v + (1 - beta2) g^2
//   p <- p - lr / (1 - beta1^step) m / (sqrt(v / (1 - beta2^step)) + eps)
//
//   p, m, v    f32 of one shape and of the same strides without gaps; updated in place. p is the master copy
//   g          f32 likewise
//   grad_scale [1] f32 on p's device, or undefined for 1: what gradient_norm gives to clip. Where it is not
//              finite, nothing is changed: one bad batch does not ruin the moments
//   narrow     the same in bf16 or f16, or undefined: receives p, rounded, for the products
//
// step counts from 1. The same bits whatever the threads.
#pragma once

#include <span>

#include "ssm/core/tensor.h"

namespace ssm {

struct AdamW {
  float lr = 1e-3f, beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f, weight_decay = 0.1f;
  int64_t step = 1;
};
struct AdamWParameter {
  Tensor p, g, m, v, narrow{};
};

// All of one device; on a card many parameters are one launch.
void adamw(const AdamW& options, std::span<const AdamWParameter> parameters, const Tensor& grad_scale = {});

}  // namespace ssm
