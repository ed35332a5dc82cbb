// The operands of ssd_scan as the CPU kernels of both directions read them.
#pragma once

#include <algorithm>

#include "ssm/ops/ssd_scan/ssd_scan.h"

namespace ssm {

inline constexpr int64_t kL = kSsdChunk;

struct SsdRows {  // of a [T, ...] operand
  const float* data = nullptr;
  int64_t stride = 0;
  const float* at(int64_t t) const { return data + t * stride; }
};

struct SsdOperands {
  int64_t H, P, G, N;
  int64_t P_pad, N_pad;  // multiples of the lanes, of the tile's rows
  SsdRows x, dt, B, C;
  const float *A, *D, *dt_bias;  // D and dt_bias may be null
  bool D_per_channel;            // D is [H*P]
  bool dt_softplus;
  float dt_min, dt_max;
  float* y;  // [T, H*P], the forward's

  static SsdOperands of(const SsdScanArgs& args);
};

// A chunk and what its groups share; memory only where the chunk is longer than one token.
struct SsdChunkWork {
  int64_t begin, length;
  float* shared;  // [G] x {B [L, N_pad], C^T [N_pad, L], B C^T [L, L]}
  static int64_t floats_per_group(const SsdOperands& s) { return kL * (2 * s.N_pad + kL); }
  float* B(const SsdOperands& s, int64_t g) const { return shared + g * floats_per_group(s); }
  float* Ct(const SsdOperands& s, int64_t g) const { return B(s, g) + kL * s.N_pad; }
  float* BCt(const SsdOperands& s, int64_t g) const { return Ct(s, g) + kL * s.N_pad; }
};

inline SsdOperands SsdOperands::of(const SsdScanArgs& args) {
  const auto rows = [](const Tensor& t) { return SsdRows{t.data<float>(), t.stride(0)}; };
  const auto data = [](const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; };
  SsdOperands s{};
  s.H = args.A.size(0), s.P = args.x.size(1) / s.H;
  s.G = args.groups, s.N = args.B.size(1) / s.G;
  s.P_pad = (s.P + 15) / 16 * 16, s.N_pad = (s.N + 3) / 4 * 4;
  s.x = rows(args.x), s.dt = rows(args.dt), s.B = rows(args.B), s.C = rows(args.C);
  s.A = data(args.A), s.D = data(args.D), s.dt_bias = data(args.dt_bias);
  s.D_per_channel = args.D.defined() && args.D.numel() != s.H;
  s.dt_softplus = args.dt_softplus, s.dt_min = args.dt_min, s.dt_max = args.dt_max;
  return s;
}

}  // namespace ssm
