#pragma once

#include "ssm/ops/linear/linear.h"

namespace ssm::cuda {

void linear(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& rounded_bias, DType compute,
            const Tensor& y);
void linear_backward(const Tensor& x, const Tensor& w, const Tensor& dy, const LinearGrads& grads);
bool multiplies_natively(DType dtype);

// Rows that can be read 16 bytes at a time.
inline bool in_packs(const Tensor& t) {
  const int64_t bytes = static_cast<int64_t>(size_of(t.dtype()));
  return reinterpret_cast<uintptr_t>(t.raw()) % 16 == 0 && t.size(1) * bytes % 16 == 0 &&
         (t.size(0) <= 1 || t.stride(0) * bytes % 16 == 0);
}

// c [m, n] (+)= op(a) op(b), each row-major, with op(a) [m, k] and op(b) [k, n]; a and b of one type, c of it
// or f32. `bias` [n] is of c's type.
struct LibraryProduct {
  Tensor a{};
  bool a_transposed = false;
  Tensor b{};
  bool b_transposed = false;
  Tensor c{};
  Tensor bias{};
  bool adds = false;
};
bool library_product(const LibraryProduct& p);            // cuBLASLt; false where it has nothing for it
void any_product(const LibraryProduct& p);                // plain tiles, linear_any.cu
void add_column_sums(const Tensor& x, const Tensor& to);  // linear_backward.cu: to[n] += sum of x[., n]

// How it is done, for tests and benches: `linear` takes the first that can and suits.
bool linear_few_rows(const Tensor& x, const Tensor& w, const Tensor& bias,
                     const Tensor& y);  // linear_rows.cu
bool linear_add_few_rows(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& residual);
bool linear_library(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y);  // cuBLASLt
void linear_any(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y);      // plain tiles

// The products of a decode step of up to kStepRows rows, with what stands before and after them.
inline constexpr int64_t kStepRows = 8;
struct StepRows {
  Tensor x;            // [T, K] of the activations' type, or f32 where it is normed without a gate
  Tensor norm_weight;  // [K] f32: what is multiplied is rms_norm(x), or undefined
  Tensor gate;         // [T, K] of x's type: gated_rms_norm(x, gate), or undefined
  int64_t groups = 1;  // of the norm
  float eps = 0;
};
// The columns [first, first + channels) of a product pass through the step of a causal convolution of width 4
// and SiLU (causal_conv1d.h). Its input is rounded to the weights' type.
struct ConvStep {
  Tensor weight, bias;   // [channels, 4]; [channels] or undefined
  Tensor state;          // [S, 3, channels]
  const int32_t* slots;  // [T]
  int64_t first;
};
bool has_linear_step(int64_t T, const Weight& w);
bool has_linear_add(int64_t T, const Weight& w);
void linear_add(const Tensor& x, const Weight& w, const Tensor& bias, const Tensor& residual);  // any rows
void linear_conv_step(const StepRows& x, const Weight& w, const Tensor& bias, const ConvStep& conv,
                      const Tensor& y);
// residual [T, N] f32 += the product.
void linear_add_step(const StepRows& x, const Weight& w, const Tensor& bias, const Tensor& residual);

// Dense 16-bit weights on Hopper that the card's blocks hold at once, of up to 128 rows (linear_streamed.cu).
bool has_streamed_products();  // on this card, for some shapes
bool linear_streamed(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y);
bool linear_add_streamed(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& residual);
bool can_stream(int64_t T, const Tensor& w);  // x aligned
bool has_linear_of_norm(int64_t T, const Weight& w);
UndividedNorm linear_add_norm(const LinearOperands& p, const Tensor& residual, const Tensor& norm_weight,
                              float eps);
void linear_of_norm(const UndividedNorm& x, const Tensor& w, const Tensor& bias, const Tensor& y);
bool has_linear_beside(const LinearOperands& first, const LinearOperands& second);
void linear_beside(const LinearOperands& first, const LinearOperands& second, const Tensor& y1,
                   const Tensor& y2);
bool has_linear_add_both(const LinearOperands& first, const LinearOperands& second);
void linear_add_both(const LinearOperands& first, const LinearOperands& second, const Tensor& residual);

Tensor round_bias(const Tensor& bias, DType compute);  // [N] f32 -> 16 bits

}  // namespace ssm::cuda
