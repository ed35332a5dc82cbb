// Which matrix of a model is packed how, and packing it.
//
//   projections of a layer    the type asked for
//   embedding and head        a 4-bit type's next wider one: q4_0 -> q5_0, q4_1 -> q5_1, q4_k -> q5_k,
//                             int4 -> int8: they lose the most for their size (docs/numerics.md)
//   x_proj, dt_proj           q8_0 under a q type, int8 under an int type: small, and all of dt, B and C
//                             comes out of them
//   anything else             stays as it is: A_log, D, norms, biases, convolutions
//
// Rows that a type's blocks do not divide take the next that fits, as in GGUF files: q4_k -> q5_0, q5_k ->
// q5_1, q6_k -> q8_0, then 16 bits. The int types fit every row.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "ssm/quant/weight.h"

namespace ssm {

struct Quantization {
  QuantFormat format;
  // Matrices whose names hold one of these stay as they are.
  std::vector<std::string> keep = {};
  // Of a matrix's columns, by its name: the mean square of what each is multiplied by (load/calibrate.h).
  std::map<std::string, std::vector<float>, std::less<>> importance = {};
};

// The types a model can be quantized to: "q8_0", ..., "int4".
std::vector<std::string> quantization_types();

// What becomes of the matrix `name` that is stored as `stored`.
std::variant<DType, QuantFormat> planned_type(const Quantization& quantization, std::string_view name,
                                              const Shape& shape, DType stored);

// The matrix as planned. Throws Error beginning with `described` for a weight that cannot be packed.
Weight quantized(const Tensor& matrix, const Quantization& quantization, const std::string& name,
                 const std::string& described);

}  // namespace ssm
