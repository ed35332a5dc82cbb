// What a backward of ssd_scan on a CPU works on: operands and gradients, and the parts of a round.
#pragma once

#include "ssm/ops/ssd_scan/ssd_scan_operands.h"

namespace ssm {

constexpr int64_t kPieceChunks = 16;

struct SsdGradRows {  // of a [T, ...] gradient, or null
  float* data = nullptr;
  int64_t stride = 0;
  float* at(int64_t t) const { return data + t * stride; }
  explicit operator bool() const { return data != nullptr; }
};

struct SsdBackward {
  SsdOperands s;
  SsdRows dy;
  SsdGradRows dx, ddt, dB, dC;
  int64_t block_heads, blocks;  // of a task; blocks of a group
  float* sums;                  // [pieces, H, 2 + P_pad]: of dA, ddt_bias and dD

  int64_t state() const { return s.N_pad * s.P_pad; }
  int64_t parameters() const { return 2 + s.P_pad; }
};

// What a block of heads adds to a chunk's dS^T [L, L] (of C B^T), dC^T and dB^T [N_pad, L].
struct SsdPartial {
  float *dSt, *dCt, *dBt;
  static int64_t floats(const SsdOperands& s) { return kL * (kL + 2 * s.N_pad); }
  SsdPartial(const SsdOperands& s, float* p) : dSt(p), dCt(p + kL * kL), dBt(p + kL * kL + s.N_pad * kL) {}
};

// Chunks of one sequence in a round: states [H, N_pad, P_pad] before the first of them, and the gradients of
// the state after the last and before the first; null where that is zero, or not needed.
struct SsdPiece {
  const SsdChunkWork* chunks;
  int64_t count;
  float* partials;  // [count, G, blocks] SsdPartial
  const float *start, *dh_after;
  float* dh_before;
};

}  // namespace ssm
