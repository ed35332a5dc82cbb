#include "ssm/quant/fit.h"

#include <algorithm>
#include <array>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/quant/fit.cpp"
#include <hwy/foreach_target.h>
// after foreach_target.h
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A lane a rounding, so that every machine adds up alike whatever its vectors' width.
void code_sums_kernel(const Run& run, std::span<const Rounding> roundings, CodeRange range, CodeSums* out) {
  const hn::CappedTag<float, 16> d;
  using V = hn::Vec<decltype(d)>;
  constexpr size_t kLanes = hn::MaxLanes(d);
  const V lo = hn::Set(d, static_cast<float>(range.lo)), hi = hn::Set(d, static_cast<float>(range.hi));
  for (size_t first = 0; first < roundings.size(); first += kLanes) {
    const size_t count = std::min(kLanes, roundings.size() - first);
    HWY_ALIGN float lanes[3][kLanes] = {};
    for (size_t j = 0; j < count; ++j) {
      lanes[0][j] = roundings[first + j].inverse;
      lanes[1][j] = roundings[first + j].offset;
    }
    const V inverse = hn::Load(d, lanes[0]), offset = hn::Load(d, lanes[1]);
    V q = hn::Zero(d), qq = hn::Zero(d), xq = hn::Zero(d);
    for (int64_t i = 0; i < run.n; ++i) {
      const V exact = hn::Add(hn::Mul(hn::Set(d, run.x[i]), inverse), offset);
      const V code = hn::Round(hn::Min(hn::Max(exact, lo), hi));
      const V weighted = hn::Mul(hn::Set(d, run.w[i]), code);
      q = hn::Add(q, weighted);
      qq = hn::Add(qq, hn::Mul(weighted, code));
      xq = hn::Add(xq, hn::Mul(hn::Set(d, run.wx[i]), code));
    }
    hn::Store(q, d, lanes[0]);
    hn::Store(qq, d, lanes[1]);
    hn::Store(xq, d, lanes[2]);
    for (size_t j = 0; j < count; ++j) *out++ = {lanes[0][j], lanes[1][j], lanes[2][j]};
  }
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {
HWY_EXPORT(code_sums_kernel);

namespace {

constexpr int kRefinements = 3;

// The scale of least squares, and how much of the sum of w x^2 it explains.
struct Scaled {
  double scale = 0, explained = 0;
};
Scaled scaled(const CodeSums& s) {
  if (!(s.qq > 0)) return {};
  const double scale = static_cast<double>(s.xq) / static_cast<double>(s.qq);
  return {scale, scale * static_cast<double>(s.xq)};
}

struct Fitted {
  double scale = 0, low = 0, explained = 0;
};
Fitted fitted(const RunSums& run, const CodeSums& s, LowSign sign) {
  const double q = s.q, qq = s.qq, xq = s.xq, det = run.w * qq - q * q;
  Fitted fit;
  if (det > 1e-9 * run.w * qq) {
    fit.scale = (run.w * xq - run.x * q) / det;
    fit.low = (qq * run.x - q * xq) / det;
  } else if (run.w > 0) {  // all codes are equal
    fit.low = run.x / run.w;
  }
  if ((sign == LowSign::not_positive && fit.low > 0) || (sign == LowSign::not_negative && fit.low < 0)) {
    const Scaled through_zero = scaled(s);
    return {through_zero.scale, 0, through_zero.explained};
  }
  fit.explained = fit.scale * xq + fit.low * run.x;
  return fit;
}

}  // namespace

void code_sums(const Run& run, std::span<const Rounding> roundings, CodeRange range, CodeSums* out) {
  HWY_DYNAMIC_DISPATCH(code_sums_kernel)(run, roundings, range, out);
}

RunSums run_sums(const Run& run) {
  RunSums sums;
  for (int64_t i = 0; i < run.n; ++i) {
    sums.w += static_cast<double>(run.w[i]);
    sums.x += static_cast<double>(run.wx[i]);
    sums.xx += static_cast<double>(run.wx[i]) * static_cast<double>(run.x[i]);
  }
  return sums;
}

void round_codes(const float* x, int64_t n, Rounding rounding, CodeRange range, int8_t* codes) {
  constexpr float kToInteger = 12582912.0f;  // 1.5 2^23: adding it rounds to an integer, to even at a tie
  const auto lo = static_cast<float>(range.lo), hi = static_cast<float>(range.hi);
  for (int64_t i = 0; i < n; ++i) {
    const float exact = std::min(std::max(x[i] * rounding.inverse + rounding.offset, lo), hi);
    codes[i] = static_cast<int8_t>(exact + kToInteger - kToInteger);
  }
}

float fit_scale(const Run& run, CodeRange range) {
  float largest = 0;
  for (int64_t i = 0; i < run.n; ++i) {
    if (std::abs(run.x[i]) > std::abs(largest)) largest = run.x[i];
  }
  if (largest == 0) return 0;
  // The largest weight becomes code -t or t.
  const auto span = static_cast<float>(std::max(-range.lo, range.hi));
  const int steps = span < 64 ? 16 : 8;
  const float widest = span + 0.6f, narrowest = span < 64 ? 0.62f * span : span - 4;
  std::array<Rounding, 32> roundings;
  int count = 0;
  for (int side = range.lo == -range.hi ? 1 : 0; side < 2; ++side) {
    for (int i = 0; i < steps; ++i) {
      const float t = widest - (widest - narrowest) * static_cast<float>(i) / static_cast<float>(steps - 1);
      roundings[static_cast<size_t>(count++)] = {(side == 0 ? -t : t) / largest, 0};
    }
  }
  std::array<CodeSums, 32> sums;
  code_sums(run, std::span(roundings).first(static_cast<size_t>(count)), range, sums.data());
  Scaled best;
  for (int i = 0; i < count; ++i) {
    if (const Scaled s = scaled(sums[static_cast<size_t>(i)]); s.explained > best.explained) best = s;
  }
  for (int i = 0; i < kRefinements && best.scale != 0; ++i) {
    const Rounding rounding{static_cast<float>(1 / best.scale), 0};
    code_sums(run, std::span(&rounding, 1), range, sums.data());
    const Scaled s = scaled(sums[0]);
    if (!(s.explained > best.explained)) break;
    best = s;
  }
  return static_cast<float>(best.scale);
}

Line fit_line(const Run& run, int highest, LowSign sign) {
  float low = *std::min_element(run.x, run.x + run.n), high = *std::max_element(run.x, run.x + run.n);
  if (sign == LowSign::not_positive) low = std::min(low, 0.0f);
  if (sign == LowSign::not_negative) high = std::max(high, 0.0f);
  if (!(high > low)) return {0, sign == LowSign::not_negative ? std::max(low, 0.0f) : low};
  constexpr int kEnds = 6;
  constexpr float kStep = 0.045f;  // of the span, at either end
  std::array<Rounding, kEnds * kEnds> roundings;
  const auto codes = static_cast<float>(highest);
  for (int i = 0; i < kEnds * kEnds; ++i) {
    const float first = low + (high - low) * kStep * static_cast<float>(i / kEnds - 1) / (codes / 15),
                last = high - (high - low) * kStep * static_cast<float>(i % kEnds - 1) / (codes / 15);
    const float inverse = codes / (last - first);
    roundings[static_cast<size_t>(i)] = {inverse, -first * inverse};
  }
  std::array<CodeSums, kEnds * kEnds> sums;
  const CodeRange range{0, highest};
  code_sums(run, roundings, range, sums.data());
  const RunSums fixed = run_sums(run);
  Fitted best = fitted(fixed, sums[0], sign);
  for (const CodeSums& s : sums) {
    if (const Fitted f = fitted(fixed, s, sign); f.explained > best.explained) best = f;
  }
  for (int i = 0; i < kRefinements && best.scale > 0; ++i) {
    const auto inverse = static_cast<float>(1 / best.scale);
    const Rounding rounding{inverse, static_cast<float>(-best.low / best.scale)};
    code_sums(run, std::span(&rounding, 1), range, sums.data());
    const Fitted f = fitted(fixed, sums[0], sign);
    if (!(f.explained > best.explained)) break;
    best = f;
  }
  return {static_cast<float>(best.scale), static_cast<float>(best.low)};
}

}  // namespace ssm
#endif  // HWY_ONCE
