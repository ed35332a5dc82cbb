// Scales by search: what quantize asks for each run of weights that share one.
//
// A run's codes are q = clamp(round(x inverse + offset), lo, hi). Every fit looks for the rounding whose best
// scale (and low), by least squares, leave the smallest sum of w (x - low - scale q)^2: a grid of roundings
// around the one that spans the run, then rounding and least squares in turn. The same bits on every machine.
#pragma once

#include <cstdint>
#include <span>

namespace ssm {

// Weights that share a scale.
struct Run {
  const float* x;
  const float* w;   // how much each error counts
  const float* wx;  // w x
  int64_t n;
};

struct Rounding {
  float inverse, offset;
};
struct CodeRange {
  int lo, hi;
};

// Sums over a run for one rounding.
struct CodeSums {
  float q, qq, xq;  // w q, w q^2, w x q
};
void code_sums(const Run& run, std::span<const Rounding> roundings, CodeRange range, CodeSums* out);

// Sums over a run whatever the rounding.
struct RunSums {
  double w = 0, x = 0, xx = 0;  // w, w x, w x^2
};
RunSums run_sums(const Run& run);

// Rounds values, then clamps; any x.
void round_codes(const float* x, int64_t n, Rounding rounding, CodeRange range, int8_t* codes);

// x = scale q, with whatever sign of scale serves best where the range has no mirror image.
float fit_scale(const Run& run, CodeRange range);

enum class LowSign { free, not_positive, not_negative };
struct Line {
  float scale, low;
};
// x = low + scale q, q from 0 to `highest`.
Line fit_line(const Run& run, int highest, LowSign sign);

}  // namespace ssm
