#pragma once

#include "ssm/core/tensor.h"

namespace ssm::cuda {

void linear(const Tensor& x, const Tensor& w, const Tensor& bias, DType compute, const Tensor& y);
bool multiplies_natively(DType dtype);

// How it is done, for tests and benches: `linear` takes the first that can.
bool linear_few_rows(const Tensor& x, const Tensor& w, const Tensor& bias,
                     const Tensor& y);                                                       // linear_rows.cu
bool linear_library(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y);  // cuBLASLt
void linear_any(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y);      // plain tiles

// [N] f32 -> 16 bits.
void round_bias(const Tensor& bias, const Tensor& rounded);

}  // namespace ssm::cuda
