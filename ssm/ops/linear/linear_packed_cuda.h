// Products with packed weights on a card (quant/card_layout.h). Up to kMostPackedRows rows of x read the
// codes as they lie (linear_packed_rows.cuh), 32 or 8 rows at a time; more have rows of W dequantized to x's
// type, kSlabBytes at most at a time, and multiplied as dense ones are.
#pragma once

#include "ssm/ops/linear/linear_cuda.h"

namespace ssm::cuda {

void linear(const Tensor& x, const QuantizedTensor& w, const Tensor& bias, const Tensor& rounded_bias,
            DType compute, const Tensor& y);
// dx (+)= dy W, of dequantized slabs. With several the sum of a 16-bit dx is rounded after each.
void linear_dx(const QuantizedTensor& w, const Tensor& dy, const Tensor& dx, bool adds);

// How it is done, for tests and benches.
inline constexpr int64_t kMostPackedRows = 64, kMostPackedColumns = 65536;
inline constexpr int64_t kSlabBytes = int64_t{64} << 20;
void linear_packed_few_rows(const Tensor& x, const QuantizedTensor& w, const Tensor& bias, const Tensor& y);
void linear_packed_many_rows(const Tensor& x, const QuantizedTensor& w, const Tensor& bias, const Tensor& y);
// Rows [first, first + n) into `to` [n, K] f32, bf16 or f16, contiguous; `first` a multiple of 16. f32 has
// dequantize_row's values to the bit.
void unpack_rows(const QuantizedTensor& w, int64_t first, const Tensor& to);

// The products of a decode step (linear_cuda.h), of the formats of dispatch_common_format() in whole packs.
bool has_packed_step(const QuantizedTensor& w);
void packed_conv_step(const StepRows& x, const QuantizedTensor& w, const Tensor& bias, const ConvStep& conv,
                      const Tensor& y);
void packed_add_step(const StepRows& x, const QuantizedTensor& w, const Tensor& bias, const Tensor& residual);

// x with rows that can be read 16 bytes at a time, zeros behind K up to a multiple of 8: x or a copy of it.
Tensor rows_in_packs(const Tensor& x);

}  // namespace ssm::cuda
