// The backward of ssd_scan through one head's chunk.
#if defined(SSM_OPS_SSD_SCAN_BACKWARD_CHUNK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SSM_OPS_SSD_SCAN_BACKWARD_CHUNK_INL_H_
#undef SSM_OPS_SSD_SCAN_BACKWARD_CHUNK_INL_H_
#else
#define SSM_OPS_SSD_SCAN_BACKWARD_CHUNK_INL_H_
#endif

#include <hwy/highway.h>

#include "ssm/ops/simd/math-inl.h"
#include "ssm/ops/simd/matmul-inl.h"
#include "ssm/ops/simd/scratch.h"
#include "ssm/ops/ssd_scan/ssd_scan_backward_operands.h"
#include "ssm/ops/ssd_scan/ssd_scan_chunk-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

// A head's chunk on its way back. r_k, the gradient of dt'_k A, is the sum of all that passes token k on its
// way from an earlier token to a later one: within the chunk, out of the state before it, into the state
// after it, or through it. Each term has exp(dt'_k A) as a factor, so nothing cancels where the state is
// forgotten.
struct HeadChunk {
  Decays decays;
  HWY_ALIGN float slope[kL];       // of dt'
  HWY_ALIGN float end[kL];         // exp(s_L - s_j)
  HWY_ALIGN float within[kL];      // of r_k: the sum over j < k <= i of what x_j gives to y_i
  HWY_ALIGN float crossing[kL];    // what the tokens up to the one at hand give to y_i
  HWY_ALIGN float from_state[kL];  // what the state before the chunk gives to y_i
  HWY_ALIGN float direct[kL];      // of dt'_j, by M
  HWY_ALIGN float to_state[kL];    // x_j . (B_j dh)
};

struct BackScratch {
  float *x, *dy, *dy_start;  // [L, P_pad]; dy_start: dy_i exp(s_i)
  float *xt, *dyt;           // [P_pad, L]
  float *Mt, *dMt;           // [L, L]
  float* row;                // [tile rows, P_pad]
  float *D, *dD;             // [P_pad]
  float *dh, *states;        // [N_pad, P_pad]; the state before each chunk

  BackScratch(const SsdBackward& k, int64_t chunks) {
    const int64_t P = k.s.P_pad;
    float* p = cpu::thread_scratch(5 * kL * P + 2 * kL * kL + (kTileRows + 2) * P + (chunks + 1) * k.state());
    const auto take = [&p](int64_t floats) { return (p += floats) - floats; };
    for (float** q : {&x, &dy, &dy_start, &xt, &dyt}) *q = take(kL * P);
    for (float** q : {&Mt, &dMt}) *q = take(kL * kL);
    row = take(kTileRows * P), D = take(P), dD = take(P), dh = take(k.state()), states = p;
  }
};

HWY_INLINE int64_t whole(int64_t length) { return (length + 15) / 16 * 16; }  // in tiles and vectors

// softplus' and the clamp's slope: one inside and on its limits.
HWY_INLINE void load_slope(const SsdOperands& s, int64_t head, int64_t begin, int64_t length, float* slope) {
  const DF d;
  const float bias = s.dt_bias ? s.dt_bias[head] : 0.0f;
  for (int64_t i = 0; i < length; ++i) slope[i] = s.dt.at(begin + i)[head] + bias;
  for (int64_t i = 0; i < length; i += lanes()) {
    const V raw = hn::Load(d, slope + i), dt = s.dt_softplus ? softplus_f32(d, raw) : raw;
    const auto inside = hn::And(hn::Ge(dt, hn::Set(d, s.dt_min)), hn::Le(dt, hn::Set(d, s.dt_max)));
    hn::Store(hn::IfThenElseZero(inside, s.dt_softplus ? sigmoid_f32(d, raw) : hn::Set(d, 1.0f)), d,
              slope + i);
  }
}

// Rows [length, P] of one head, zeros up to whole tiles, and their transpose where `t` is given.
HWY_INLINE void load_rows(const SsdOperands& s, const SsdRows& from, int64_t head, int64_t begin,
                          int64_t length, float* rows, float* t) {
  const int64_t end = whole(length);
  for (int64_t i = 0; i < end; ++i) {
    float* const row = rows + i * s.P_pad;
    const int64_t n = i < length ? s.P : 0;
    if (n > 0) std::copy_n(from.at(begin + i) + head * s.P, n, row);
    std::fill(row + n, row + s.P_pad, 0.0f);
  }
  for (int64_t i0 = 0; t != nullptr && i0 < end; i0 += 8) {  // 8 rows by 8: whole cache lines of both
    for (int64_t p0 = 0; p0 < s.P_pad; p0 += 8) {
      for (int64_t p = p0; p < p0 + 8; ++p) {
        for (int64_t i = i0; i < i0 + 8; ++i) t[p * kL + i] = rows[i * s.P_pad + p];
      }
    }
  }
}

HWY_INLINE void scale_rows(const float* rows, const float* factor, int64_t count, int64_t P, float* out) {
  const DF d;
  for (int64_t i = 0; i < count; ++i) {
    const V f = hn::Set(d, factor[i]);
    for (int64_t p = 0; p < P; p += lanes())
      hn::Store(hn::Mul(hn::Load(d, rows + i * P + p), f), d, out + i * P + p);
  }
}

// h = exp(s_L) h + sum_k at[n, k] rows[k], at's elements a_row and a_step apart.
HWY_INLINE void pass_state(const SsdBackward& k, float factor, const float* at, int64_t a_row, int64_t a_step,
                           const float* rows, int64_t length, const float* from, float* to) {
  const int64_t P = k.s.P_pad;
  float factors[kTileRows];
  std::fill_n(factors, kTileRows, factor);
  for (int64_t n = 0; n < k.s.N_pad; n += kTileRows) {
    for_each_tile(P, [&](auto tile, int64_t p) HWY_ATTR {
      tile.load(from + n * P + p, P);
      tile.scale_rows(factors);
      tile.add_product(at + n * a_row, a_row, a_step, rows + p, P, length);
      tile.store(to + n * P + p, P);
    });
  }
}

// The state after a chunk from the one before it; B [length, N_pad].
HWY_INLINE void advance_state(const SsdBackward& k, int64_t head, const SsdChunkWork& chunk, const float* B,
                              const BackScratch& scratch, const float* from, float* to) {
  Decays decays;
  decays.compute(k.s, head, chunk.begin, chunk.length);
  load_rows(k.s, k.s.x, head, chunk.begin, chunk.length, scratch.x, nullptr);
  scale_rows(scratch.x, decays.to_end, chunk.length, k.s.P_pad, scratch.x);
  pass_state(k, decays.whole, B, 1, k.s.N_pad, scratch.x, chunk.length, from, to);
}

// dMt[j, i] = dy_i . x_j from the diagonal's tiles on.
HWY_INLINE void score_gradients(const SsdBackward& k, int64_t length, const BackScratch& scratch) {
  const int64_t P = k.s.P_pad, unit = std::max<int64_t>(lanes(), kTileRows);
  for (int64_t j = 0; j < length; j += kTileRows) {
    const int64_t first = j / unit * unit;
    for_each_tile(whole(length) - first, [&](auto tile, int64_t i) HWY_ATTR {
      tile.zero();
      tile.add_product(scratch.x + j * P, P, 1, scratch.dyt + first + i, kL, P);
      tile.store(scratch.dMt + j * kL + first + i, kL);
    });
  }
}

// With S = C B^T and E_ij = exp(s_i - s_j): Mt, dS += dM E dt, and what dt' gets from M = S E dt.
HWY_INLINE void attention_backward(const float* BCt, HeadChunk& c, int64_t length, const BackScratch& scratch,
                                   float* dSt) {
  const DF d;
  const int64_t unit = std::max<int64_t>(lanes(), kTileRows), end = whole(length);
  std::fill_n(c.crossing, kL, 0.0f);
  c.within[0] = 0.0f;
  for (int64_t j = 0; j < length; ++j) {
    const V dt = hn::Set(d, c.decays.dt[j]), column = hn::Set(d, static_cast<float>(j));
    V sum = hn::Zero(d), crossing = hn::Zero(d);
    for (int64_t i = j / unit * unit; i < end; i += lanes()) {
      const V row = hn::Iota(d, static_cast<float>(i)), dM = hn::Load(d, scratch.dMt + j * kL + i);
      const V E = hn::IfThenElseZero(hn::Ge(row, column), c.decays.since(i, j));
      const V m = hn::Mul(hn::LoadU(d, BCt + j * kL + i), E);
      hn::Store(hn::Mul(m, dt), d, scratch.Mt + j * kL + i);
      const V to_S = hn::Mul(hn::Mul(dM, E), dt);
      hn::StoreU(hn::Add(to_S, hn::LoadU(d, dSt + j * kL + i)), d, dSt + j * kL + i);
      const auto later = hn::Gt(row, column);
      const V q = hn::IfThenElseZero(later, hn::Mul(dM, m));
      const V given = hn::MulAdd(q, dt, hn::Load(d, c.crossing + i));
      hn::Store(given, d, c.crossing + i);
      crossing = hn::Add(crossing, hn::IfThenElseZero(later, given));
      sum = hn::Add(sum, q);
    }
    if (j + 1 < length) c.within[j + 1] = hn::GetLane(hn::SumOfLanes(d, crossing));
    c.direct[j] = hn::GetLane(hn::SumOfLanes(d, sum)) + scratch.dMt[j * kL + j] * BCt[j * kL + j];
  }
  for (int64_t j = length; j < (length + kTileRows - 1) / kTileRows * kTileRows; ++j)
    std::fill_n(scratch.Mt + j * kL, end, 0.0f);
}

// dx_j = exp(s_L - s_j) dt_j (B_j dh) + sum_i M_ij dy_i + D dy_j. Also c.to_state, and dD.
HWY_INLINE void input_gradients(const SsdBackward& k, int64_t head, const SsdChunkWork& chunk, const float* B,
                                HeadChunk& c, const BackScratch& scratch) {
  const DF d;
  const int64_t P = k.s.P_pad, unit = std::max<int64_t>(lanes(), kTileRows);
  std::fill_n(c.to_state, kL, 0.0f);
  for (int64_t j = 0; j < chunk.length; j += kTileRows) {
    const int64_t first = j / unit * unit, rows = std::min<int64_t>(kTileRows, chunk.length - j);
    for_each_tile(P, [&](auto tile, int64_t p) HWY_ATTR {
      tile.zero();
      tile.add_product(B + j * k.s.N_pad, k.s.N_pad, 1, scratch.dh + p, P, k.s.N);
      for (int r = 0; r < kTileRows; ++r) {
        const float* x = scratch.x + (j + r) * P + p;
        V sum = hn::Zero(d);
        for (const V& v : tile.v[r]) sum = hn::MulAdd(v, hn::Load(d, x), sum), x += lanes();
        c.to_state[j + r] += hn::GetLane(hn::SumOfLanes(d, sum));
      }
      tile.scale_rows(c.decays.to_end + j);
      tile.add_product(scratch.Mt + j * kL + first, kL, 1, scratch.dy + first * P + p, P,
                       chunk.length - first);
      tile.store(scratch.row + p, P);
    });
    for (int64_t r = 0; r < rows; ++r) {
      float* const row = scratch.row + r * P;
      for (int64_t p = 0; p < P; p += lanes()) {
        const V dy = hn::Load(d, scratch.dy + (j + r) * P + p), x = hn::Load(d, scratch.x + (j + r) * P + p);
        hn::Store(hn::MulAdd(dy, hn::Load(d, scratch.D + p), hn::Load(d, row + p)), d, row + p);
        hn::Store(hn::MulAdd(dy, x, hn::Load(d, scratch.dD + p)), d, scratch.dD + p);
      }
      if (k.dx) std::copy_n(row, k.s.P, k.dx.at(chunk.begin + j + r) + head * k.s.P);
    }
  }
}

// dC_i += exp(s_i) h dy_i and dB_j += exp(s_L - s_j) dt_j dh x_j, transposed. Also c.from_state.
HWY_INLINE void state_gradients(const SsdBackward& k, int64_t length, const float* Ct, const float* h,
                                HeadChunk& c, const BackScratch& scratch, const SsdPartial& partial) {
  const DF d;
  const int64_t P = k.s.P_pad;
  std::fill_n(c.from_state, kL, 0.0f);
  for (int64_t n = 0; n < k.s.N_pad; n += kTileRows) {
    for_each_tile(whole(length), [&](auto tile, int64_t i) HWY_ATTR {
      tile.zero();
      tile.add_product(h + n * P, P, 1, scratch.dyt + i, kL, P);
      for (int r = 0; r < kTileRows; ++r) {
        for (int64_t at = i; V & v : tile.v[r]) {
          const V dC = hn::Mul(v, hn::Load(d, c.decays.from_start + at));
          float* const to = partial.dCt + (n + r) * kL + at;
          hn::StoreU(hn::Add(hn::LoadU(d, to), dC), d, to);
          const V C = hn::LoadU(d, Ct + (n + r) * kL + at);
          hn::Store(hn::MulAdd(dC, C, hn::Load(d, c.from_state + at)), d, c.from_state + at);
          at += lanes();
        }
      }
    });
    for_each_tile(whole(length), [&](auto tile, int64_t j) HWY_ATTR {
      tile.zero();
      tile.add_product(scratch.dh + n * P, P, 1, scratch.xt + j, kL, P);
      for (int r = 0; r < kTileRows; ++r) {
        for (int64_t at = j; V & v : tile.v[r]) {
          float* const to = partial.dBt + (n + r) * kL + at;
          hn::StoreU(hn::MulAdd(v, hn::Load(d, c.decays.to_end + at), hn::LoadU(d, to)), d, to);
          at += lanes();
        }
      }
    });
  }
}

HWY_INLINE float inner_product(const float* a, const float* b, int64_t n) {
  const DF d;
  V sum[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
  for (int64_t i = 0; i < n; i += 4 * lanes()) {  // n is a multiple of 64
    for (int r = 0; r < 4; ++r)
      sum[r] = hn::MulAdd(hn::Load(d, a + i + r * lanes()), hn::Load(d, b + i + r * lanes()), sum[r]);
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3]))));
}

// r of each token, the last first, and from it A and dt'; `through` is what goes through the whole chunk.
HWY_INLINE void decay_gradients(const SsdBackward& k, int64_t head, const SsdChunkWork& chunk,
                                const HeadChunk& c, double through, float* sums) {
  double into[kL + 1] = {};  // of r_k: from the tokens before k into the state after the chunk
  for (int64_t j = 0; j < chunk.length; ++j) {
    into[j + 1] = into[j] + static_cast<double>(c.decays.to_end[j]) * c.to_state[j];
  }
  double dA = 0, dbias = 0, from_state = 0;
  for (int64_t i = chunk.length; i-- > 0;) {
    from_state += c.from_state[i];
    const double r = c.within[i] + from_state + into[i] + through;
    const double direct = c.direct[i] + static_cast<double>(c.end[i]) * c.to_state[i];
    const double ddt = (direct + k.s.A[head] * r) * c.slope[i];
    dA += c.decays.dt[i] * r;
    dbias += ddt;
    if (k.ddt) k.ddt.at(chunk.begin + i)[head] = static_cast<float>(ddt);
  }
  sums[0] += static_cast<float>(dA);
  sums[1] += static_cast<float>(dbias);
}

void chunk_backward(const SsdBackward& k, int64_t head, const SsdChunkWork& chunk, const float* h,
                    const BackScratch& scratch, const SsdPartial& partial, float* sums) {
  const DF d;
  const SsdOperands& s = k.s;
  const int64_t g = head / (s.H / s.G), L = chunk.length;
  HeadChunk c;
  c.decays.compute(s, head, chunk.begin, L);
  load_slope(s, head, chunk.begin, L, c.slope);
  for (int64_t j = 0; j < kL; j += lanes()) hn::Store(c.decays.between(kL - 1, j), d, c.end + j);
  load_rows(s, s.x, head, chunk.begin, L, scratch.x, scratch.xt);
  load_rows(s, k.dy, head, chunk.begin, L, scratch.dy, scratch.dyt);
  scale_rows(scratch.dy, c.decays.from_start, L, s.P_pad, scratch.dy_start);
  score_gradients(k, L, scratch);
  attention_backward(chunk.BCt(s, g), c, L, scratch, partial.dSt);
  input_gradients(k, head, chunk, chunk.B(s, g), c, scratch);
  state_gradients(k, L, chunk.Ct(s, g), h, c, scratch, partial);
  const double through = static_cast<double>(c.decays.whole) * inner_product(h, scratch.dh, k.state());
  decay_gradients(k, head, chunk, c, through, sums);
  pass_state(k, c.decays.whole, chunk.Ct(s, g), kL, 1, scratch.dy_start, L, scratch.dh, scratch.dh);
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per target
