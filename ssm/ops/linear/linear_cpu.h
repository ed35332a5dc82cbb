#pragma once

#include "ssm/ops/linear/linear.h"

namespace ssm::cpu {

void linear(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& rounded_bias, DType compute,
            const Tensor& y);
void linear(const Tensor& x, const QuantizedTensor& w, const Tensor& bias, const Tensor& rounded_bias,
            DType compute, const Tensor& y);
void linear_backward(const Tensor& x, const Tensor& w, const Tensor& dy, const LinearGrads& grads);
void linear_dx(const QuantizedTensor& w, const Tensor& dy, const Tensor& dx, bool adds);
inline Tensor round_bias(const Tensor& /*bias*/, DType /*compute*/) { return {}; }
bool multiplies_natively(DType dtype);

// y [T, N] = x [T, K] w^T, f32 rows rounded to bf16 and bf16 weights: where extensions().bf16.
void linear_bf16_dot(const Tensor& x, const Tensor& w, const float* bias, const Tensor& y);

}  // namespace ssm::cpu
