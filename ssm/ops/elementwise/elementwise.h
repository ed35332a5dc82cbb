// Small ops without a folder of their own.
#pragma once

#include "ssm/core/tensor.h"

namespace ssm {

// -exp(x), f32: A from A_log. The result has the operand's strides, so a channels-contiguous one stays so.
Tensor negative_exp(const Tensor& x);

// Its gradient, from its result y = -exp(x): dx += y dy. All f32 of one shape of rank 1 or 2, of any strides.
void negative_exp_backward(const Tensor& y, const Tensor& dy, const Tensor& dx);

// y <- y + scale x, and y again.
//   y, x [T, M] of a type for activations, both of one, rows contiguous (a row stride is allowed)
// A gradient of y flows on to both.
Tensor add_scaled(const Tensor& y, const Tensor& x, float scale);

// a + b, a tensor of its own: for operands that something recorded still reads. Like add_scaled's operands.
Tensor sum(const Tensor& a, const Tensor& b);

// average += (value - average) weight: a step of an exponential moving average. f32, of one shape and the
// same strides without gaps, of any rank.
void move_average(const Tensor& average, const Tensor& value, float weight);

// y = x where kept, divided by 1 - p, and 0 elsewhere: each element is dropped with probability p (Srivastava
// et al. 2014). Which ones depends on the seed and the place in y alone. Its gradient takes the same way.
//   x [T, M] of a type for activations, rows contiguous (a row stride is allowed);  0 <= p < 1
Tensor dropout(const Tensor& x, float p, uint64_t seed);

// y[i] = x[places[i]]: some rows of a matrix. Its gradient is 0 in the other rows.
//   x [T, M] of a type for activations, rows contiguous (a row stride is allowed);  y [n, M] of its type
//   places [n] i32, contiguous, each in [0, T), none twice: the caller's promise on a card
// Errors: on a CPU a place outside x, by value and position.
Tensor take_rows(const Tensor& x, const Tensor& places);

}  // namespace ssm
