#include "ssm/quant/pack_row.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "ssm/core/error.h"
#include "ssm/quant/blocks.h"
#include "ssm/quant/pack_super_block.h"

namespace ssm {
namespace {

using Codes = std::array<int8_t, 128>;

// Writes the rounded scale and gives it back as readers will see it.
float put_f16(uint8_t* at, float value) {
  store_f16(at, value);
  return load_f16(at);
}

float inverse_of(float scale) { return scale != 0 ? 1 / scale : 0; }

// x = scale q, the scale as f16 at `at`.
void pack_scaled(const Run& run, CodeRange range, uint8_t* at, Codes& codes) {
  const float scale = put_f16(at, fit_scale(run, range));
  round_codes(run.x, run.n, {inverse_of(scale), 0}, range, codes.data());
}

// x = low + scale q, scale and low as f16 at `at`. The low is fitted again to the rounded scale.
void pack_line(const Run& run, int highest, uint8_t* at, Codes& codes) {
  const CodeRange range{0, highest};
  const Line line = fit_line(run, highest, LowSign::free);
  const float scale = put_f16(at, line.scale), inverse = inverse_of(scale);
  const Rounding rounding{inverse, -line.low * inverse};
  CodeSums sums;
  code_sums(run, std::span(&rounding, 1), range, &sums);
  const RunSums fixed = run_sums(run);
  const double low = (fixed.x - static_cast<double>(scale) * static_cast<double>(sums.q)) / fixed.w;
  const float stored = put_f16(at + 2, static_cast<float>(low));
  round_codes(run.x, run.n, {inverse, -stored * inverse}, range, codes.data());
}

void put_nibbles(const int8_t* codes, int64_t n, uint8_t* out) {
  const int64_t half = (n + 1) / 2;
  for (int64_t j = 0; j < half; ++j) {
    const int high = j + half < n ? codes[j + half] & 15 : 0;
    out[j] = static_cast<uint8_t>((codes[j] & 15) | high << 4);
  }
}

void put_fifth_bits(const int8_t* codes, uint8_t* out) {
  std::memset(out, 0, 4);
  for (int j = 0; j < 32; ++j) out[j / 8] = static_cast<uint8_t>(out[j / 8] | (codes[j] >> 4 & 1) << (j % 8));
}

void shift(Codes& codes, int by) {
  for (int8_t& code : codes) code = static_cast<int8_t>(code + by);
}

void q8_0(const Run& run, uint8_t* out, Codes& codes) {
  pack_scaled(run, {-127, 127}, out, codes);
  std::memcpy(out + 2, codes.data(), 32);
}

void q4_0(const Run& run, uint8_t* out, Codes& codes) {
  pack_scaled(run, {-8, 7}, out, codes);
  shift(codes, 8);
  put_nibbles(codes.data(), 32, out + 2);
}

void q4_1(const Run& run, uint8_t* out, Codes& codes) {
  pack_line(run, 15, out, codes);
  put_nibbles(codes.data(), 32, out + 4);
}

void q5_0(const Run& run, uint8_t* out, Codes& codes) {
  pack_scaled(run, {-16, 15}, out, codes);
  shift(codes, 16);
  put_fifth_bits(codes.data(), out + 2);
  put_nibbles(codes.data(), 32, out + 6);
}

void q5_1(const Run& run, uint8_t* out, Codes& codes) {
  pack_line(run, 31, out, codes);
  put_fifth_bits(codes.data(), out + 4);
  put_nibbles(codes.data(), 32, out + 8);
}

template <class F>
void blocks(const PreparedRow& row, int64_t bytes, uint8_t* out, F&& one) {
  Codes codes;
  for (int64_t k = 0; k < row.size(); k += 32, out += bytes) one(row.run(k, 32), out, codes);
}

void int8_row(const PreparedRow& row, int64_t group, uint8_t* out) {
  Codes codes;
  for (int64_t k = 0; k < row.size(); k += group) {
    const int64_t n = std::min(group, row.size() - k);
    pack_scaled(row.run(k, n), {-127, 127}, out, codes);
    std::memcpy(out + 2, codes.data(), static_cast<size_t>(n));
    out += 2 + n;
  }
}

void int4_row(const PreparedRow& row, int64_t group, uint8_t* out) {
  Codes codes;
  for (int64_t k = 0; k < row.size(); k += group) {
    const int64_t n = std::min(group, row.size() - k);
    pack_line(row.run(k, n), 15, out, codes);
    out += 4;
    for (int64_t j = 0; j < n; j += 32) {
      const int64_t length = std::min<int64_t>(32, n - j);
      put_nibbles(codes.data() + j, length, out);
      out += (length + 1) / 2;
    }
  }
}

template <class F>
void super_blocks(const PreparedRow& row, int64_t bytes, uint8_t* out, F&& one) {
  for (int64_t k = 0; k < row.size(); k += 256, out += bytes) one(row.run(k, 256), out);
}

}  // namespace

PreparedRow::PreparedRow(int64_t K, std::span<const float> importance)
    : K_(K), x_(static_cast<size_t>(K)), w_(static_cast<size_t>(K), 1.0f), wx_(static_cast<size_t>(K)) {
  std::copy(importance.begin(), importance.end(), w_.begin());
}

void PreparedRow::set(const float* weights) {
  std::copy_n(weights, K_, x_.begin());
  for (size_t k = 0; k < x_.size(); ++k) wx_[k] = w_[k] * x_[k];
}

void pack_row(const QuantFormat& format, const PreparedRow& row, std::byte* bytes) {
  auto* out = reinterpret_cast<uint8_t*>(bytes);
  switch (format.type) {
    case QuantType::q8_0:
      return blocks(row, 34, out, q8_0);
    case QuantType::q4_0:
      return blocks(row, 18, out, q4_0);
    case QuantType::q4_1:
      return blocks(row, 20, out, q4_1);
    case QuantType::q5_0:
      return blocks(row, 22, out, q5_0);
    case QuantType::q5_1:
      return blocks(row, 24, out, q5_1);
    case QuantType::q4_k:
      return super_blocks(row, 144, out, pack_q4_k);
    case QuantType::q5_k:
      return super_blocks(row, 176, out, pack_q5_k);
    case QuantType::q6_k:
      return super_blocks(row, 210, out, pack_q6_k);
    case QuantType::int8:
      return int8_row(row, format.group, out);
    case QuantType::int4:
      return int4_row(row, format.group, out);
    case QuantType::q2_k:
    case QuantType::q3_k:
      break;
  }
  fail("{} is read, not written", name_of(format));
}

}  // namespace ssm
