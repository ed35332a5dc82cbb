#pragma once

#include "ssm/ops/linear/linear.h"

namespace ssm::cpu {

void linear(const Tensor& x, const Tensor& w, const Tensor& bias, DType compute, const Tensor& y);
void linear(const Tensor& x, const QuantizedTensor& w, const Tensor& bias, DType compute, const Tensor& y);
void linear_backward(const Tensor& x, const Tensor& w, const Tensor& dy, const LinearGrads& grads);
void linear_dx(const QuantizedTensor& w, const Tensor& dy, const Tensor& dx, bool adds);
bool multiplies_natively(DType dtype);

// linear_cpu_bf16.cpp: y [T, N] = x [T, K] w^T of bf16 operands with the CPU's bf16 dot product.
bool has_bf16_dot();
void linear_bf16_dot(const Tensor& x, const Tensor& w, const float* bias, const Tensor& y);
void round_to_bf16(const float* x, int64_t n, BFloat16* out);  // where has_bf16_dot()

}  // namespace ssm::cpu
