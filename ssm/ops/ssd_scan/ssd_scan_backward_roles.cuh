// The gradients of a chunk's heads (ssd_scan_backward_narrow_cuda.cu): what a block keeps in shared memory,
// and the trades of its twelve warps. Four make dx and dS^T, four dC, and four dB; they share one copy of a
// head's operands.
#pragma once

#include "ssm/ops/ssd_scan/ssd_scan_backward_narrow.cuh"

namespace ssm::cuda::ssd_backward {

inline constexpr int kRole = 128;  // threads: four warps
inline constexpr int kStages = 3;
inline constexpr int kWidth = 3 * kRole;  // threads of a block

// A head of a chunk: its operands, and what its tokens' ddt is made of.
template <int kN>
struct alignas(128) HeadStage {
  unsigned char x[kPanel], dy[kPanel];
  unsigned char h[kN * 128], dh[kN * 128];
  Factors factors;
};
struct alignas(16) HeadSums {
  float rows[kTile], direct[kTile], to_state[kTile], from_state[kTile];
  float columns[4][kTile];  // by warp
  float D[4][kTile];        // by run of tokens
  float through[4];         // by warp
  float whole;
};
template <int kN>
struct alignas(128) GradientShared {
  HeadStage<kN> stages[kStages];
  unsigned char B[kN / 64][kPanel], C[kN / 64][kPanel];
  unsigned char written[kPanel];  // dx, and last dS^T
  float4 S[8][kRole];             // of each thread, which would else have too few registers
  HeadSums sums[2];
};

// What the roles know of their block.
struct Place {
  const BackwardArgs& a;
  Chunk chunk;
  int64_t number;
  int group, block, first_head, heads, length;
  int lane, g, q, warp, row;  // of the role's four warps, and its first row

  __device__ __forceinline__ explicit Place(const BackwardArgs& args)
      : a(args),
        chunk(chunk_of(args.batch, blockIdx.x, kTile)),
        number(blockIdx.x),
        group(static_cast<int>(blockIdx.y) / args.blocks),
        block(static_cast<int>(blockIdx.y) % args.blocks),
        first_head(group * (args.H / args.G) + block * args.block_heads),
        heads(min(args.block_heads, args.H / args.G - block * args.block_heads)),
        length(length_of(chunk)),
        lane(static_cast<int>(threadIdx.x) % 32),
        g(lane / 4),
        q(lane % 4),
        warp(static_cast<int>(threadIdx.x) % kRole / 32),
        row(warp * 16) {}
};

// Copies a head's operands; one group of copies a call.
template <class T, int kN>
__device__ __forceinline__ void fetch_head(const Place& p, GradientShared<kN>& shared, int index) {
  if (index < p.heads) {
    const BackwardArgs& a = p.a;
    HeadStage<kN>& to = shared.stages[index % kStages];
    const int thread = static_cast<int>(threadIdx.x), head = p.first_head + index;
    const int64_t column = int64_t{head} * kTile, state = (p.number * a.H + head) * (kN * kTile);
    copy_panel(shared_address(to.x), static_cast<const T*>(a.x) + p.chunk.begin * a.x_stride + column,
               a.x_stride, p.length, thread, kWidth);
    copy_panel(shared_address(to.dy), static_cast<const T*>(a.dy) + p.chunk.begin * a.dy_stride + column,
               a.dy_stride, p.length, thread, kWidth);
#pragma unroll 1
    for (int i = thread; i < kN * 8; i += kWidth) {
      const uint32_t at = place(0, i / 8, i % 8);
      copy_async(shared_address(to.h) + at, static_cast<const T*>(a.h) + state + i * 8, true);
      copy_async(shared_address(to.dh) + at, static_cast<const T*>(a.dh) + state + i * 8, true);
    }
    const Factors* const from = a.factors + p.number * a.H + head;
    if (thread < static_cast<int>(sizeof(Factors) / 16))
      copy_async(shared_address(&to.factors) + thread * 16, reinterpret_cast<const float4*>(from) + thread,
                 true);
  }
  commit_copies();
}

// Of the strips' columns, summed over the warp's rows: a lane ends with columns 8 t + 2 q, + 1 of one t.
__device__ __forceinline__ float2 sum_columns(const float (&x)[8][2], int lane, int& t) {
  constexpr unsigned kAll = 0xffffffffu;
  const bool far = lane & 16, middle = lane & 8, near = lane & 4;
  float half[4][2], quarter[2][2], last[2];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int j = i / 2, e = i % 2;
    half[j][e] = (far ? x[j + 4][e] : x[j][e]) + __shfl_xor_sync(kAll, far ? x[j][e] : x[j + 4][e], 16);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int j = i / 2, e = i % 2;
    quarter[j][e] = (middle ? half[j + 2][e] : half[j][e]) +
                    __shfl_xor_sync(kAll, middle ? half[j][e] : half[j + 2][e], 8);
  }
#pragma unroll
  for (int e = 0; e < 2; ++e)
    last[e] = (near ? quarter[1][e] : quarter[0][e]) +
              __shfl_xor_sync(kAll, near ? quarter[0][e] : quarter[1][e], 4);
  t = (far ? 4 : 0) + (middle ? 2 : 0) + (near ? 1 : 0);
  return {last[0], last[1]};
}

// S^T = B C^T, each thread's elements.
template <class T, int kN>
__device__ __forceinline__ void keep_scores(const Place& p, uint32_t B, uint32_t C, float4 (&to)[8][kRole]) {
  Strip S;
  clear(S);
#pragma unroll
  for (int k = 0; k < kN / 16; ++k) {
    uint32_t left[4];
    load_left(left, B, p.row, 16 * k);
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      uint32_t right[4];
      load_right(right, C, 16 * k, 16 * pair);
      multiply<T>(S, pair, left, right);
    }
  }
#pragma unroll
  for (int t = 0; t < 8; ++t) store<4>(&to[t][threadIdx.x].x, S[t]);
}

// dx of a head, its part of dS^T, and what passes its tokens within the chunk and into the state. Rows are
// tokens j, columns of the square matrices i; only those with i >= j are made.
template <class T, int kN>
__device__ __forceinline__ void inputs_of_head(const Place& p, const HeadStage<kN>& from, uint32_t B,
                                               const float4 (&S)[8][kRole], Strip& dS, unsigned char* written,
                                               int head, HeadSums& sums) {
  const BackwardArgs& a = p.a;
  const uint32_t x_tile = shared_address(from.x), dy_tile = shared_address(from.dy),
                 dh = shared_address(from.dh);
  uint32_t x[4][4], M[4][4];
#pragma unroll
  for (int k = 0; k < 4; ++k) load_left(x[k], x_tile, p.row, 16 * k);
  const float log[2] = {from.factors.log[p.row + p.g], from.factors.log[p.row + p.g + 8]};
  const float dt[2] = {from.factors.dt[p.row + p.g], from.factors.dt[p.row + p.g + 8]};
  float direct[2] = {}, rows[2] = {}, columns[8][2] = {};
  {
    Strip dM;
    clear(dM);
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      if (pair < p.warp) continue;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        uint32_t right[4];
        load_right(right, dy_tile, 16 * k, 16 * pair);
        multiply<T>(dM, pair, x[k], right);
      }
#pragma unroll
      for (int t = 2 * pair; t < 2 * pair + 2; ++t) {
        float scores[4];
        load<4>(scores, &S[t][threadIdx.x].x);
        const float2 to = *reinterpret_cast<const float2*>(&from.factors.log[8 * t + 2 * p.q]);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int r = e / 2, j = p.row + p.g + 8 * r, i = 8 * t + 2 * p.q + e % 2;
          const float E = i >= j ? exp2_fast((e % 2 ? to.y : to.x) - log[r]) : 0.0f;
          const float m = scores[e] * E, all = dM[t][e] * m, beyond = i > j ? all * dt[r] : 0.0f;
          dS[t][e] = fmaf(dM[t][e] * E, dt[r], dS[t][e]);
          direct[r] += all;
          rows[r] += beyond;
          columns[t][e % 2] += beyond;
          dM[t][e] = m * dt[r];
        }
      }
      as_left<T>(M[pair], dM, pair);
    }
  }
  int t;
  const float2 column = sum_columns(columns, p.lane, t);
  *reinterpret_cast<float2*>(&sums.columns[p.warp][8 * t + 2 * p.q]) = column;
  Strip dx;
  clear(dx);
#pragma unroll
  for (int k = 0; k < kN / 16; ++k) {
    uint32_t left[4];
    load_left(left, B, p.row, 16 * k);
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      uint32_t right[4];
      load_right_down(right, dh, 16 * k, 16 * pair);
      multiply<T>(dx, pair, left, right);
    }
  }
  float to_state[2] = {};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t words[4];  // x again: it is not held meanwhile
    load_left(words, x_tile, p.row, 16 * k);
    with_words<T>(dx, k, words, [&](int r, int, float2 v, float& low, float& high) {
      to_state[r] = fmaf(v.y, high, fmaf(v.x, low, to_state[r]));
    });
  }
  const float last = from.factors.log[kTile - 1];
  const float end[2] = {exp2_fast(last - log[0]), exp2_fast(last - log[1])};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float row_sum = sum_row(rows[r]), of_direct = sum_row(direct[r]),
                of_state = sum_row(to_state[r]) * end[r];
    const int j = p.row + p.g + 8 * r;
    if (p.q == 0) sums.rows[j] = row_sum, sums.direct[j] = of_direct, sums.to_state[j] = of_state;
  }
  if (a.dx == nullptr) return;
#pragma unroll
  for (int i = 0; i < 32; ++i) dx[i / 4][i % 4] *= dt[i % 4 / 2] * end[i % 4 / 2];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (k < p.warp) continue;
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      uint32_t right[4];
      load_right_down(right, dy_tile, 16 * k, 16 * pair);
      multiply<T>(dx, pair, M[k], right);
    }
  }
  if (a.D) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      uint32_t dy[4];
      load_left(dy, dy_tile, p.row, 16 * k);
      with_words<T>(dx, k, dy, [&](int, int next, float2 v, float& low, float& high) {
        const int c = head * kTile + 16 * k + 8 * next + 2 * p.q;
        low = fmaf(a.D[a.D_by_channel ? c : head], v.x, low);
        high = fmaf(a.D[a.D_by_channel ? c + 1 : head], v.y, high);
      });
    }
  }
  T* const to = static_cast<T*>(a.dx) + p.chunk.begin * a.dx_stride + int64_t{head} * kTile;
  write_strip<T>(dx, written, p.row, [&](int j, int vector, const uint4& v) {
    if (j < p.length) *reinterpret_cast<uint4*>(to + j * a.dx_stride + vector * 8) = v;
  });
}

// += factor (rows of `left_tile`) (state)^T for kN states: a head's part of dC, or dB. f(strip, half) sees
// it.
template <class T, int kN, class F>
__device__ __forceinline__ void states_of_head(const Place& p, uint32_t left_tile, uint32_t state,
                                               const float* factor, Strip (&sum)[kN / 64], F&& f) {
  uint32_t left[4][4];
#pragma unroll
  for (int k = 0; k < 4; ++k) load_left(left[k], left_tile, p.row, 16 * k);
  const float of_row[2] = {factor[p.row + p.g], factor[p.row + p.g + 8]};
#pragma unroll
  for (int half = 0; half < kN / 64; ++half) {
    Strip part;
    clear(part);
#pragma unroll
    for (int pair = 0; pair < 4; ++pair)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        uint32_t right[4];
        load_right(right, state, 16 * k, 64 * half + 16 * pair);
        multiply<T>(part, pair, left[k], right);
      }
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      part[i / 4][i % 4] *= of_row[i % 4 / 2];
      sum[half][i / 4][i % 4] += part[i / 4][i % 4];
    }
    f(part, half);
  }
}

// The part of dC (A = dS) or dB (A = dS^T) from within the chunk, then the sums go out.
template <class T, int kN, bool kIsB>
__device__ __forceinline__ void finish_states(const Place& p, uint32_t scores, uint32_t other,
                                              Strip (&sum)[kN / 64]) {
  const BackwardArgs& a = p.a;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t left[4];
    if (kIsB) {
      load_left(left, scores, p.row, 16 * k);
    } else {
      load_left_down(left, scores, p.row, 16 * k);
    }
#pragma unroll
    for (int i = 0; i < kN / 16; ++i) {
      uint32_t right[4];
      load_right_down(right, other, 16 * k, 16 * i);
      multiply<T>(sum[i / 4], i % 4, left, right);
    }
  }
  void* const out = kIsB ? a.dB : a.dC;
  if (out == nullptr) return;
  const int64_t stride = kIsB ? a.dB_stride : a.dC_stride, width = int64_t{a.G} * kN;
  T* const to = static_cast<T*>(out) + p.chunk.begin * stride + p.group * kN;
  float* const parts =
      a.BC + ((kIsB ? a.blocks : 0) + p.block) * a.batch.total * width + p.chunk.begin * width + p.group * kN;
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    const int row = p.row + p.g + i % 4 / 2 * 8, n = i / 32 * 64 + i / 4 % 8 * 8 + 2 * p.q + i % 2;
    if (row >= p.length) continue;
    const float x = sum[i / 32][i / 4 % 8][i % 4];
    if (a.blocks == 1) {
      to[row * stride + n] = from_f32<T>(x);
    } else {
      parts[row * width + n] = x;
    }
  }
}

// <h, dh> and the sums of x dy over runs of 16 tokens.
template <class T, int kN>
__device__ __forceinline__ void sums_of_head(const Place& p, const HeadStage<kN>& from, HeadSums& sums) {
  float through = 0.0f;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x) % kRole; i < kN * 8; i += kRole) {
    const uint4 h = *reinterpret_cast<const uint4*>(from.h + i * 16),
                dh = *reinterpret_cast<const uint4*>(from.dh + i * 16);
    const uint32_t a[4] = {h.x, h.y, h.z, h.w}, b[4] = {dh.x, dh.y, dh.z, dh.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float2 v = unpack<T>(a[e]), w = unpack<T>(b[e]);
      through = fmaf(v.y, w.y, fmaf(v.x, w.x, through));
    }
  }
  through = warp_sum(through);
  if (p.lane == 0) sums.through[p.warp] = through;
  float2 D{};
#pragma unroll 4
  for (int r = p.row; r < p.row + 16; ++r) {
    const uint32_t at = place(0, r, p.lane / 4) + p.lane % 4 * 4;
    const float2 v = unpack<T>(*reinterpret_cast<const uint32_t*>(from.x + at)),
                 w = unpack<T>(*reinterpret_cast<const uint32_t*>(from.dy + at));
    D.x = fmaf(v.x, w.x, D.x), D.y = fmaf(v.y, w.y, D.y);
  }
  *reinterpret_cast<float2*>(&sums.D[p.warp][2 * p.lane]) = D;
  if (p.lane == 0 && p.warp == 0) sums.whole = from.factors.from_start[kTile - 1];
}

// A head's ddt and parts of parameters, by one warp.
template <class T>
__device__ __forceinline__ void finish_head(const Place& p, const HeadSums& s, int head) {
  StepSums of;
  float passes[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int i = 2 * p.lane + e;
    const bool there = i < p.length;
    passes[e] = s.rows[i] - ((s.columns[0][i] + s.columns[1][i]) + (s.columns[2][i] + s.columns[3][i]));
    of.direct[e] = there ? s.direct[i] : 0.0f;
    of.to_state[e] = there ? s.to_state[i] : 0.0f;
    of.from_state[e] = there ? s.from_state[i] : 0.0f;
    const int64_t at = (p.number * p.a.H + head) * kTile + i;
    p.a.D_sums[at] = (s.D[0][i] + s.D[1][i]) + (s.D[2][i] + s.D[3][i]);
  }
  float before = passes[0] + passes[1];
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const float other = __shfl_up_sync(0xffffffffu, before, offset);
    if (p.lane >= offset) before += other;
  }
  before = __shfl_up_sync(0xffffffffu, before, 1);
  of.within[0] = p.lane > 0 ? before : 0.0f;
  of.within[1] = of.within[0] + passes[0];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    if (2 * p.lane + e >= p.length) of.within[e] = 0.0f;
  }
  of.through = ((s.through[0] + s.through[1]) + (s.through[2] + s.through[3])) * s.whole;
  write_steps<T>(p.a, p.chunk, p.number, head, of);
}

}  // namespace ssm::cuda::ssd_backward
