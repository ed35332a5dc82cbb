// One row of logits in the hands of a cluster of blocks. Every function of Row is called by all threads of
// the cluster alike.
//
// A warp owns a run of neighbouring scores, so that sums over warps, then over blocks, are sums in the order
// of ids. Amounts are integers (units_of, counts): no result depends on how a row is shared out.
#pragma once

#include <limits>

#include "ssm/ops/cuda/cluster.cuh"
#include "ssm/ops/sampling/sampling.h"

namespace ssm::cuda {

using Units = unsigned long long;

constexpr int kSampleThreads = 1024, kSampleWarps = kSampleThreads / 32;
constexpr int kBins = 2 * kSampleThreads;  // of a histogram, over 11 bits
constexpr int kCandidates = kSampleThreads;
constexpr unsigned kLanes = 0xffffffffu;

struct SampleArgs {
  const float* logits;
  int64_t stride;
  int32_t vocab;
  SamplingRow* rows;
  uint8_t* seen;  // or null
  int64_t slots, seen_stride;
  int32_t* ids;
  int32_t segment;  // scores a warp owns
  bool vectors;     // four scores, and four marks, may be read at once
};

struct alignas(16) SampleShared {
  union {
    uint2 bins[kBins];  // 64-bit sums as two words, the low one first
    struct {            // the cluster's candidates and their amounts
      Units candidates[kCandidates], amounts[kCandidates];
    };
  };
  Units own[kCandidates / 2];  // this block's candidates, where a cluster has several
  unsigned count;              // of them, or of those that were too many
  unsigned listed;             // of `candidates`
  Units cut;
  Units warps[kSampleWarps];
  Units blocks[2][8][2];  // what each block of the cluster told the others, this time and the last
  Units found[3];         // the bin, what is still missing in it, what is in it
};

// Keys ascend from the highest score to the lowest; scores are not NaN, and there is no -0.
__device__ __forceinline__ uint32_t key_of(float score) {
  const uint32_t bits = __float_as_uint(score);
  return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}
__device__ __forceinline__ float score_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key : ~key & 0x7fffffffu);
}

// Bit for bit exp_f32 of simd/math-inl.h on a CPU with fused multiply-add, for x of at most 0. Adding 1.5 *
// 2^23 rounds to an integer, which then stands in the low bits.
__device__ __forceinline__ float exp_as_on_cpu(float x) {
  const float held = fmaxf(x, -87.33654f);
  const float t = __fadd_rn(__fmul_rn(held, 1.44269504088896341f), 12582912.0f),
              n = __fsub_rn(t, 12582912.0f);
  float r = __fmaf_rn(-n, 0.693359375f, held);
  r = __fmaf_rn(-n, -2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = __fmaf_rn(p, r, 1.3981999507e-3f);
  p = __fmaf_rn(p, r, 8.3334519073e-3f);
  p = __fmaf_rn(p, r, 4.1665795894e-2f);
  p = __fmaf_rn(p, r, 1.6666665459e-1f);
  p = __fmaf_rn(p, r, 5.0000001201e-1f);
  p = __fmaf_rn(p, __fmul_rn(r, r), __fadd_rn(r, 1.0f));
  const float scale = __uint_as_float((__float_as_uint(t) << 23) + 0x3f800000u);
  return x < -87.33654f ? 0.0f : __fmul_rn(p, scale);
}

__device__ __forceinline__ Units units_of(float weight) { return __float2ull_rz(weight * 0x1p40f); }

__device__ __forceinline__ Units lanes_sum(Units x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(kLanes, x, offset);
  return x;
}
__device__ __forceinline__ Units lanes_running_sum(Units x, int lane) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const Units before = __shfl_up_sync(kLanes, x, offset);
    if (lane >= offset) x += before;
  }
  return x;
}

// The scores that a filter keeps: those before a key, and of those that have it the ids up to one.
struct Cut {
  uint32_t key = 0xffffffffu, id = 0xffffffffu;
  __device__ bool keeps(uint32_t k, uint32_t i) const { return k < key || (k == key && i <= id); }
  // The narrower of two.
  __device__ Cut within(const Cut& other) const { return other.keeps(key, id) ? *this : other; }
};

// kKept: its scores stand in shared memory.
template <bool kKept>
class Row {
 public:
  __device__ Row(const SampleArgs& a, SampleShared& shared, float* scores, int64_t b)
      : a_(a),
        shared_(shared),
        b_(b),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32),
        size_(cluster_size()),
        rank_(cluster_rank()),
        params_(a.rows[b].params),
        position_(a.rows[b].position) {
    begin_ = min((static_cast<int>(rank_) * kSampleWarps + warp_) * a.segment, a.vocab);
    end_ = min(begin_ + a.segment, a.vocab);
    kept_ = scores + warp_ * a.segment;
    const int32_t slot = a.rows[b].slot;
    const bool inside = slot >= 0 && slot < a.slots;
    penalised_ = params_.repetition_penalty != 1;
    valid_ = a.seen ? inside : !penalised_;
    marks_ = a.seen + (inside ? slot * a.seen_stride : 0);
    penalised_ = penalised_ && valid_;
  }

  const __device__ SamplingParams& params() const { return params_; }
  __device__ int64_t position() const { return position_; }

  // Reads the scores. The id of the highest, or -1 when none is finite.
  __device__ int32_t read() {
    float best = -INFINITY;
    int32_t id = INT32_MAX;
    bool finite = false;
    auto take = [&](int32_t i, float raw) {
      finite = finite || isfinite(raw);
      const float x = cleaned(raw);
      if (x > best) best = x, id = i;
      return x;
    };
    const bool penalised = penalised_;
    const int32_t packs_end = a_.vectors ? begin_ + (end_ - begin_) / 4 * 4 : begin_;
    constexpr int kLoads = 4;
#pragma unroll 1
    for (int32_t i = begin_ + 4 * lane_; i < packs_end; i += 128 * kLoads) {
      float4 v[kLoads];
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        if (i + 128 * k < packs_end) v[k] = *reinterpret_cast<const float4*>(logits() + i + 128 * k);
      }
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        const int32_t at = i + 128 * k;
        if (at >= packs_end) continue;
        if (!penalised) {
          v[k] = {take(at, v[k].x), take(at + 1, v[k].y), take(at + 2, v[k].z), take(at + 3, v[k].w)};
        }
        if constexpr (kKept) *reinterpret_cast<float4*>(kept_ + at - begin_) = v[k];
      }
    }
    __syncwarp();
    // What is left of the run, and all of it again where marks change scores.
#pragma unroll 2
    for (int32_t i = (penalised ? begin_ : packs_end) + lane_; i < end_; i += 32) {
      float x = kKept && i < packs_end ? kept_[i - begin_] : logits()[i];
      if (penalised) x = penalise(x, marks_[i]);
      x = take(i, x);
      if constexpr (kKept) kept_[i - begin_] = x;
    }
    __syncwarp();
    return find_highest(best, id, finite);
  }

  // After read(): the weight of a score, exp((score - highest) / temperature), as on the CPU.
  __device__ float weight(float x) const {
    const float below = __fmul_rn(__fsub_rn(x, highest_), inverse_temperature_);
    return below <= 0 ? exp_as_on_cpu(below) : 0.0f;
  }

  __device__ float highest() const { return highest_; }
  __device__ unsigned blocks() const { return size_; }
  __device__ unsigned rank() const { return rank_; }
  __device__ SampleShared& shared() const { return shared_; }

  // f(id, score) of this thread's scores. Not unrolled: what is run once is soonest done in few instructions.
  template <class F>
  __device__ void each(F f) const {
#pragma unroll 1
    for (int32_t i = begin_ + lane_; i < end_; i += 32) f(i, score(i));
  }

  // Finds the id at which the running sum of amount(id, score), in the order of ids, exceeds
  // left(sum of all), which is below that sum. `sum` is that of the thread's own.
  template <class Amount, class Left, class Found>
  __device__ void pick(Units sum, Amount amount, Left left_of, Found found) {
    sum = lanes_sum(sum);
    if (lane_ == 0) shared_.warps[warp_] = sum;
    __syncthreads();
    const Units upto = lanes_running_sum(shared_.warps[lane_], lane_);
    const auto* told = exchange(__shfl_sync(kLanes, upto, 31), 0);
    Units total = 0, before = 0;
    for (unsigned r = 0; r < size_; ++r) {
      if (r < rank_) before += told[r][0];
      total += told[r][0];
    }
    Units left = left_of(total);
    if (left < before || left >= before + told[rank_][0]) return;
    left -= before;
    const Units end = __shfl_sync(kLanes, upto, warp_), begin = end - sum;
    if (left < begin || left >= end) return;
    left -= begin;
    constexpr int kAtOnce = 4;
#pragma unroll 1
    for (int32_t start = begin_; start < end_; start += 32 * kAtOnce) {
      Units of_lane[kAtOnce], mine = 0, passed = 0;
      int hit = -1;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int32_t i = start + 32 * k + lane_;
        of_lane[k] = i < end_ ? amount(i, score(i)) : 0;
        const Units here = (Units{__reduce_add_sync(kLanes, static_cast<uint32_t>(of_lane[k] >> 20))} << 20) +
                           __reduce_add_sync(kLanes, static_cast<uint32_t>(of_lane[k]) & 0xfffffu);
        if (hit < 0 && left < passed + here) hit = k, mine = of_lane[k];
        if (hit < 0) passed += here;
      }
      left -= passed;
      if (hit < 0) continue;
      const unsigned over = __ballot_sync(kLanes, lanes_running_sum(mine, lane_) > left);
      if (lane_ == __ffs(static_cast<int>(over)) - 1) found(start + 32 * hit + lane_);
      return;
    }
  }

  // Draws one of what `cut` and min_p keep; the thread that finds it calls found(id).
  template <class Found>
  __device__ void draw(const Cut& cut, Units bits, Found found) {
    const bool all = cut.key == 0xffffffffu;
    auto kept_weight = [&](int32_t i, float x) {
      const float w = weight(x);
      return w >= params_.min_p && (all || cut.keeps(key_of(x), static_cast<uint32_t>(i))) ? w : 0.0f;
    };
    Units sum = 0;
    each([&](int32_t i, float x) {
      const float w = kept_weight(i, x);
      if constexpr (kKept) kept_[i - begin_] = w;
      sum += units_of(w);
    });
    auto amount = [&](int32_t i, float x) { return units_of(kKept ? x : kept_weight(i, x)); };
    pick(
        sum, amount, [&](Units total) { return __umul64hi(bits, total); }, found);
  }

  // By one thread, last: the row's result. An id of -1 marks nothing.
  __device__ void finish(int32_t id) const {
    a_.ids[b_] = id;
    if (id >= 0 && a_.seen) marks_[id] = 1;
    a_.rows[b_].position = position_ + 1;
  }

 private:
  __device__ const float* logits() const { return a_.logits + b_ * a_.stride; }
  __device__ float penalise(float x, uint8_t mark) const {
    if (!mark) return x;
    return x < 0 ? x * params_.repetition_penalty : x / params_.repetition_penalty;
  }
  __device__ float raw_score(int32_t i) const {
    const float x = logits()[i];
    return penalised_ ? penalise(x, marks_[i]) : x;
  }
  // NaN becomes -inf, +inf the largest number, -0 becomes 0.
  static __device__ float cleaned(float x) {
    return isnan(x) ? -INFINITY : fminf(x, std::numeric_limits<float>::max()) + 0.0f;
  }
  __device__ float score(int32_t i) const { return kKept ? kept_[i - begin_] : cleaned(raw_score(i)); }

  // Tells two numbers of this block to all blocks. Returns those of block r at [r][0] and [r][1], until the
  // call after the next.
  __device__ Units (*exchange(Units first, Units second))[2] {
    turn_ ^= 1;
    if (threadIdx.x < size_) {
      Units* to = in_block(&shared_.blocks[turn_][rank_][0], threadIdx.x);
      to[0] = first, to[1] = second;
    }
    cluster_sync();
    return shared_.blocks[turn_];
  }

  // The highest score and the lowest id that has it, over the lanes.
  static __device__ Units lanes_best(uint32_t key, uint32_t id) {
    const uint32_t best = __reduce_min_sync(kLanes, key);
    const uint32_t lowest = __reduce_min_sync(kLanes, key == best ? id : 0xffffffffu);
    return Units{best} << 32 | lowest;
  }

  __device__ int32_t find_highest(float best, int32_t id, bool finite) {
    const Units of_warp = lanes_best(key_of(best), static_cast<uint32_t>(id));
    if (lane_ == 0) shared_.warps[warp_] = of_warp;
    const bool any = __syncthreads_or(finite);
    Units mine = shared_.warps[lane_];
    mine = lanes_best(static_cast<uint32_t>(mine >> 32), static_cast<uint32_t>(mine));
    cluster_wait();  // all blocks have started (the kernel arrived first)
    const auto* told = exchange(mine, any);
    Units lowest = told[0][0], finite_anywhere = told[0][1];
    for (unsigned r = 1; r < size_; ++r) {
      lowest = min(lowest, told[r][0]);
      finite_anywhere |= told[r][1];
    }
    highest_ = score_of(static_cast<uint32_t>(lowest >> 32));
    inverse_temperature_ = fminf(__fdiv_rn(1.0f, params_.temperature), std::numeric_limits<float>::max());
    return finite_anywhere && valid_ ? static_cast<int32_t>(lowest) : -1;
  }

  const SampleArgs& a_;
  SampleShared& shared_;
  int64_t b_;
  int lane_, warp_;
  unsigned size_, rank_;
  SamplingParams params_;
  int64_t position_;
  int32_t begin_, end_;  // the warp's scores
  float* kept_;          // they, in shared memory; their weights in the end
  uint8_t* marks_;
  bool penalised_, valid_;
  int turn_ = 0;
  float highest_ = 0, inverse_temperature_ = 0;
};

}  // namespace ssm::cuda
