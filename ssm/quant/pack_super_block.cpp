#include "ssm/quant/pack_super_block.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "ssm/quant/blocks.h"

namespace ssm {
namespace {

constexpr int kRounds = 4;        // of choosing codes, then fitting the two factors to them
constexpr int kLargestCode = 63;  // of a run's scale or low

float as_f16(double x) { return to_float(from_float<Float16>(static_cast<float>(x))); }

Run part(const Run& block, int64_t first, int64_t n) {
  return {block.x + first, block.w + first, block.wx + first, n};
}

Rounding rounding_of(double scale, double low) {
  if (scale == 0) return {0, 0};
  return {static_cast<float>(1 / scale), static_cast<float>(-low / scale)};
}

// ---- Eight runs of 32, x = d scale q - dmin low (q4_k, q5_k) ----

struct LineBlock {
  float d = 0, dmin = 0;
  std::array<int, 8> scale{}, low{};
  double error = 0;
};

struct LineRun {
  Run run;
  RunSums fixed;
  Line line;
};

// The error of a run whose codes have those sums.
double error_of(const RunSums& r, const CodeSums& s, double scale, double low) {
  const double q = s.q, qq = s.qq, xq = s.xq;
  return r.xx - 2 * scale * xq - 2 * low * r.x + scale * scale * qq + 2 * scale * low * q + low * low * r.w;
}

// Sums of the normal equations of d and dmin.
struct Factors {
  double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0;

  void add(const RunSums& r, const CodeSums& s, int scale, int low) {
    const double a = scale, b = -low;
    aa += a * a * static_cast<double>(s.qq);
    ab += a * b * static_cast<double>(s.q);
    bb += b * b * r.w;
    ax += a * static_cast<double>(s.xq);
    bx += b * r.x;
  }
};

// For given d and dmin the best codes of scale and low of one run, among those next to its own fit.
CodeSums choose(const LineRun& r, int highest, float d, float dmin, int& scale, int& low, double& error) {
  std::array<Rounding, 9> roundings;
  std::array<std::array<int, 2>, 9> codes;
  const int scale0 = d != 0 ? static_cast<int>(std::lround(std::min(r.line.scale / d, 63.0f))) : 0,
            low0 = dmin != 0 ? static_cast<int>(std::lround(std::clamp(-r.line.low / dmin, 0.0f, 63.0f))) : 0;
  size_t count = 0;
  for (int i = -1; i <= 1; ++i) {
    for (int j = -1; j <= 1; ++j) {
      const int s = scale0 + i, m = low0 + j;
      if (s < 0 || m < 0 || s > kLargestCode || m > kLargestCode) continue;
      roundings[count] = rounding_of(static_cast<double>(d * static_cast<float>(s)),
                                     static_cast<double>(-dmin * static_cast<float>(m)));
      codes[count++] = {s, m};
    }
  }
  std::array<CodeSums, 9> sums;
  code_sums(r.run, std::span(roundings).first(count), {0, highest}, sums.data());
  size_t best = 0;
  for (size_t i = 0; i < count; ++i) {
    const double e = error_of(r.fixed, sums[i], static_cast<double>(d * static_cast<float>(codes[i][0])),
                              static_cast<double>(-dmin * static_cast<float>(codes[i][1])));
    if (i == 0 || e < error) error = e, best = i;
  }
  scale = codes[best][0];
  low = codes[best][1];
  return sums[best];
}

LineBlock fit_block(const Run& block, int highest) {
  const bool positive = std::all_of(block.x, block.x + 256, [](float x) { return x > 0; });
  const LowSign sign = positive ? LowSign::not_negative : LowSign::not_positive;
  std::array<LineRun, 8> runs;
  double d = 0, dmin = 0;
  for (size_t r = 0; r < 8; ++r) {
    runs[r].run = part(block, static_cast<int64_t>(r) * 32, 32);
    runs[r].fixed = run_sums(runs[r].run);
    runs[r].line = fit_line(runs[r].run, highest, sign);
    d = std::max(d, static_cast<double>(runs[r].line.scale) / kLargestCode);
    if (std::abs(runs[r].line.low) / kLargestCode > std::abs(dmin))
      dmin = static_cast<double>(-runs[r].line.low) / kLargestCode;
  }
  LineBlock best;
  for (int round = 0; round < kRounds; ++round) {
    LineBlock trial{.d = as_f16(d), .dmin = as_f16(dmin)};
    Factors f;
    for (size_t r = 0; r < 8; ++r) {
      double error = 0;
      const CodeSums sums =
          choose(runs[r], highest, trial.d, trial.dmin, trial.scale[r], trial.low[r], error);
      trial.error += error;
      f.add(runs[r].fixed, sums, trial.scale[r], trial.low[r]);
    }
    if (round == 0 || trial.error < best.error) best = trial;
    const double det = f.aa * f.bb - f.ab * f.ab;
    if (det > 1e-9 * f.aa * f.bb) {
      d = (f.ax * f.bb - f.bx * f.ab) / det;
      dmin = (f.bx * f.aa - f.ax * f.ab) / det;
    } else if (f.aa > 0) {
      d = f.ax / f.aa;
    }
    if (!(d > 0) || (dmin < 0) != positive) break;
  }
  return best;
}

// The codes of a whole block, and its first 16 bytes: d, dmin and eight pairs of six bits.
std::array<int8_t, 256> pack_lines(const Run& block, int highest, uint8_t* out) {
  const LineBlock fit = fit_block(block, highest);
  store_f16(out, fit.d);
  store_f16(out + 2, fit.dmin);
  for (int r = 0; r < 8; ++r) {
    store_k_scale(out + 4, r, {fit.scale[static_cast<size_t>(r)], fit.low[static_cast<size_t>(r)]});
  }
  std::array<int8_t, 256> codes;
  for (size_t r = 0; r < 8; ++r) {
    const double scale = static_cast<double>(fit.d * static_cast<float>(fit.scale[r])),
                 low = static_cast<double>(-fit.dmin * static_cast<float>(fit.low[r]));
    round_codes(block.x + r * 32, 32, rounding_of(scale, low), {0, highest}, codes.data() + r * 32);
  }
  return codes;
}

void put_low_nibbles(const std::array<int8_t, 256>& codes, uint8_t* out) {
  for (size_t j = 0; j < 128; ++j) {
    const size_t first = j / 32 * 64 + j % 32;
    out[j] = static_cast<uint8_t>((codes[first] & 15) | (codes[first + 32] & 15) << 4);
  }
}

// ---- Sixteen groups of 16, x = d scale q (q6_k) ----

struct ScaleBlock {
  float d = 0;
  std::array<int, 16> scale{};
  double explained = 0;
};

ScaleBlock fit_scales(const Run& block) {
  constexpr CodeRange kRange{-32, 31};
  std::array<float, 16> own;
  float largest = 0;
  for (size_t g = 0; g < 16; ++g) {
    own[g] = fit_scale(part(block, static_cast<int64_t>(g) * 16, 16), kRange);
    if (std::abs(own[g]) > std::abs(largest)) largest = own[g];
  }
  ScaleBlock best;
  double d = static_cast<double>(largest) / -128;
  for (int round = 0; round < kRounds; ++round) {
    ScaleBlock trial{.d = as_f16(d)};
    if (trial.d == 0) break;
    double qq = 0, xq = 0;
    for (size_t g = 0; g < 16; ++g) {
      const int middle = static_cast<int>(std::lround(std::clamp(own[g] / trial.d, -128.0f, 127.0f)));
      std::array<Rounding, 3> roundings;
      std::array<CodeSums, 3> sums;
      for (int i = 0; i < 3; ++i) {
        const int code = std::clamp(middle + i - 1, -128, 127);
        roundings[static_cast<size_t>(i)] =
            rounding_of(static_cast<double>(trial.d * static_cast<float>(code)), 0);
      }
      code_sums(part(block, static_cast<int64_t>(g) * 16, 16), roundings, kRange, sums.data());
      double most = 0;
      size_t chosen = 1;
      for (size_t i = 0; i < 3; ++i) {
        const int code = std::clamp(middle + static_cast<int>(i) - 1, -128, 127);
        const double s = static_cast<double>(trial.d * static_cast<float>(code));
        const double explained =
            s * (2 * static_cast<double>(sums[i].xq) - s * static_cast<double>(sums[i].qq));
        if (explained > most) most = explained, chosen = i, trial.scale[g] = code;
      }
      trial.explained += most;
      const double code = trial.scale[g];
      qq += code * code * static_cast<double>(sums[chosen].qq);
      xq += code * static_cast<double>(sums[chosen].xq);
    }
    if (trial.explained > best.explained) best = trial;
    if (!(qq > 0)) break;
    d = xq / qq;
  }
  return best;
}

}  // namespace

void pack_q4_k(const Run& block, uint8_t* out) { put_low_nibbles(pack_lines(block, 15, out), out + 16); }

void pack_q5_k(const Run& block, uint8_t* out) {
  const std::array<int8_t, 256> codes = pack_lines(block, 31, out);
  std::memset(out + 16, 0, 32);
  for (size_t i = 0; i < 256; ++i)
    out[16 + i % 32] = static_cast<uint8_t>(out[16 + i % 32] | (codes[i] >> 4) << (i / 32));
  put_low_nibbles(codes, out + 48);
}

void pack_q6_k(const Run& block, uint8_t* out) {
  const ScaleBlock fit = fit_scales(block);
  std::memset(out, 0, 192);
  for (size_t g = 0; g < 16; ++g) {
    std::array<int8_t, 16> codes;
    const float scale = fit.d * static_cast<float>(fit.scale[g]);
    round_codes(block.x + g * 16, 16, rounding_of(static_cast<double>(scale), 0), {-32, 31}, codes.data());
    for (size_t j = 0; j < 16; ++j) {
      const size_t i = g * 16 + j;
      const int code = codes[j] + 32;
      uint8_t& low = out[i / 128 * 64 + i % 64];
      uint8_t& high = out[128 + i / 128 * 32 + i % 32];
      low = static_cast<uint8_t>(low | (code & 15) << (i % 128 / 64 * 4));
      high = static_cast<uint8_t>(high | (code >> 4) << (i % 128 / 32 * 2));
    }
    out[192 + g] = static_cast<uint8_t>(fit.scale[g]);
  }
  store_f16(out + 208, fit.d);
}

}  // namespace ssm
