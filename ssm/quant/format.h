// How the rows of a packed matrix [N, K] lie in memory: each row by itself, as blocks of consecutive weights
// that share a scale. The q types are ggml's, byte for byte as they stand in GGUF files; the group-wise
// integers are this project's:
//
//   int8   a group of n weights: f16 scale; n codes, i8                       w = scale * code
//   int4   a group of n weights: f16 scale, f16 low; n codes of 4 bits        w = low + scale * code
//
// Groups are 32, 64 or 128 weights; one that does not divide a row ends in a shorter one. Codes of int4 come
// in runs of 32: byte j of a run of n holds code j in its low and code j + ceil(n / 2) in its high half.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace ssm {

enum class QuantType : uint8_t { q8_0, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k, int8, int4 };

struct QuantFormat {
  QuantType type = QuantType::q8_0;
  int64_t group = 32;  // weights of a block: 32 (q?_0, q?_1), 256 (q?_k), 32, 64 or 128 (int8, int4)

  bool operator==(const QuantFormat&) const = default;
};

std::string name_of(const QuantFormat& format);  // "q4_k", "int4 group 64"
// "q4_k", ...; "int4" and "int8" with `group`, which the q types ignore. Nothing: no such type or group.
std::optional<QuantFormat> quant_format(std::string_view type, int64_t group = 64);

// Whether rows of K weights can be stored so: K is a multiple of a q type's block.
bool fits(const QuantFormat& format, int64_t K);
int64_t row_bytes(const QuantFormat& format, int64_t K);  // of a K that fits

}  // namespace ssm
