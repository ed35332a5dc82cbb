// The filters top_k and top_p of a row.
#pragma once

#include "ssm/ops/sampling/sampling_row.cuh"

namespace ssm::cuda {

template <class Row>
class Filter {
 public:
  explicit __device__ Filter(Row& row) : row_(row), shared_(row.shared()) {}

  // Of what `among` keeps the k best, or the best whose weights reach `part` of its weight: the fewest
  // scores, best first, whose amounts reach a target; amounts are counts, or units of weights. A histogram
  // finds the bin in which they do, and the candidates there the last that is kept.
  __device__ Cut keep(bool counts, Units k, float part, const Cut& among) {
    counts_ = counts;
    auto target = [&](Units total) {
      return counts ? k : static_cast<Units>(ceil(static_cast<double>(part) * static_cast<double>(total)));
    };
    return select(among, target);
  }

 private:
  static constexpr Units kNone = ~Units{0};
  static constexpr unsigned kFew = 64;  // candidates that are compared at once

  template <class Target>
  __device__ Cut select(const Cut& among, Target target) {
    Units missing = 0;
    __syncthreads();  // the bins are clear
    row_.each([&](int32_t i, float x) { count_in(distance_bin(x), among, i, x); });
    sum_bins();
    if (threadIdx.x == 0) shared_.count = shared_.listed = 0;
    if (!find_bin(true, missing, target)) return among;  // all together do not reach it
    const auto bin = static_cast<uint32_t>(shared_.found[0]);
    const unsigned room = kCandidates / row_.blocks();
    Units* own = row_.blocks() == 1 ? shared_.candidates : shared_.own;
    row_.each([&](int32_t i, float x) {
      if (x == -INFINITY || distance_bin(x) != bin || !among.keeps(key_of(x), static_cast<uint32_t>(i)))
        return;
      const unsigned at = atomicAdd(&shared_.count, 1u);
      if (at < room) own[at] = Units{key_of(x)} << 32 | static_cast<uint32_t>(i);
    });
    cluster_sync();
    const unsigned block = threadIdx.x / room, place = threadIdx.x % room;
    unsigned n = 0, count = 0, most = 0;  // the same in every block
    for (unsigned r = 0; r < row_.blocks(); ++r) {
      const unsigned other = *in_block(&shared_.count, r);
      count = r == block ? other : count;
      n += other;
      most = max(most, other);
    }
    const bool few = n <= kFew, fits = most <= room && (few || (bin != 0 && bin != kBins - 1));
    Units mine = kNone;
    if (fits && place < count) mine = *in_block(own + place, block);
    __syncthreads();  // the candidates may be overwritten
    Cut cut;
    if (fits) {
      if (!few) mine = refine(mine);
      if (mine != kNone) {
        const unsigned at = atomicAdd(&shared_.listed, 1u);
        shared_.candidates[at] = mine;
        if (!counts_) shared_.amounts[at] = amount_of(mine);
      }
      __syncthreads();
      cut = last_of_candidates(shared_.listed);
    }
    clear_bins();
    return fits ? cut : select_by_bits(among, target);
  }

  __device__ void clear_bins() { reinterpret_cast<uint4*>(shared_.bins)[threadIdx.x] = {0, 0, 0, 0}; }

  __device__ Units amount_of(Units candidate) const {
    return counts_ ? 1 : units_of(row_.weight(score_of(static_cast<uint32_t>(candidate >> 32))));
  }

  // Of the candidates of a bin, a thread's own or none, those in the part of it where the sum reaches what is
  // missing: by the next 11 bits of their distances.
  __device__ Units refine(Units mine) {
    const Units missing = shared_.found[1];
    clear_bins();
    __syncthreads();
    uint32_t part = 0;
    if (mine != kNone) {
      part = distance_bits(score_of(static_cast<uint32_t>(mine >> 32))) >> 5 & (kBins - 1);
      add(shared_.bins[part], amount_of(mine));
    }
    __syncthreads();
    find_bin(false, missing, [](Units) { return 0; });
    return part == shared_.found[0] ? mine : kNone;
  }

  // The candidate at which the sum of amounts, best first, reaches what is missing: each compares itself with
  // all.
  __device__ Cut last_of_candidates(unsigned n) {
    const Units missing = shared_.found[1];
    if (threadIdx.x < n) {
      const Units mine = shared_.candidates[threadIdx.x];
      Units before = 0;
#pragma unroll 4
      for (unsigned j = 0; j < n; ++j) {
        const Units amount = counts_ ? 1 : shared_.amounts[j];
        before += shared_.candidates[j] < mine ? amount : 0;
      }
      if (before < missing && missing <= before + (counts_ ? 1 : shared_.amounts[threadIdx.x])) {
        shared_.cut = mine;
      }
    }
    __syncthreads();
    return {static_cast<uint32_t>(shared_.cut >> 32), static_cast<uint32_t>(shared_.cut)};
  }

  // The same for any scores, by histograms over the bits of keys, from the top.
  template <class Target>
  __device__ Cut select_by_bits(const Cut& among, Target target) {
    uint32_t prefix = 0;
    Units missing = 0, amount = 0;
    int shift = 32;
    while (shift > 0) {
      const int known = shift, bits = shift > 10 ? 11 : 10;
      shift -= bits;
      __syncthreads();  // the bins are clear
      row_.each([&](int32_t i, float x) {
        const uint32_t key = key_of(x);
        if (known == 32 || key >> known == prefix) {
          count_in(key >> shift & ((1u << bits) - 1), among, i, x);
        }
      });
      sum_bins();
      find_bin(known == 32, missing, target);
      prefix = prefix << bits | static_cast<uint32_t>(shared_.found[0]);
      missing = shared_.found[1];
      amount = shared_.found[2];
    }
    // The scores that have the key weigh alike: the lowest ids of them stay.
    const Units each_one = counts_ ? 1 : units_of(row_.weight(score_of(prefix)));
    const Units needed = (missing + each_one - 1) / each_one;
    if (needed * each_one == amount) return Cut{prefix, 0xffffffffu}.within(among);
    auto equals = [&](int32_t i, float x) -> Units {
      return key_of(x) == prefix && among.keeps(prefix, static_cast<uint32_t>(i));
    };
    Units sum = 0;
    row_.each([&](int32_t i, float x) { sum += equals(i, x); });
    row_.pick(
        sum, equals, [&](Units) { return needed - 1; },
        [&](int32_t id) {
          for (unsigned r = 0; r < row_.blocks(); ++r) {
            *in_block(&shared_.cut, r) = Units{prefix} << 32 | static_cast<uint32_t>(id);
          }
        });
    cluster_sync();
    return {prefix, static_cast<uint32_t>(shared_.cut)};
  }

  __device__ uint32_t distance_bits(float x) const { return __float_as_uint(__fsub_rn(row_.highest(), x)); }

  // Bins of a histogram over the distance d from the highest score: equally wide in the logarithm of d, 128
  // between powers of two, from 2^-8 on. Ascending, as keys are.
  __device__ uint32_t distance_bin(float x) const {
    constexpr uint32_t kFirst = (127 - 8) << 7;
    return min(max(distance_bits(x) >> 16, kFirst) - kFirst, static_cast<uint32_t>(kBins - 1));
  }

  __device__ void count_in(uint32_t bin, const Cut& among, int32_t i, float x) {
    if (x == -INFINITY) return;
    if (counts_) {
      atomicAdd(&shared_.bins[bin].x, 1u);
    } else if (among.keeps(key_of(x), static_cast<uint32_t>(i))) {
      add(shared_.bins[bin], units_of(row_.weight(x)));
    }
  }

  // 64-bit addition by two atomics of 32 bits: shared memory has none of 64.
  static __device__ void add(uint2& bin, Units units) {
    if (units == 0) return;
    const auto low = static_cast<uint32_t>(units);
    const uint32_t before = atomicAdd(&bin.x, low);
    const uint32_t high = static_cast<uint32_t>(units >> 32) + (before + low < before);
    if (high) atomicAdd(&bin.y, high);
  }

  // The blocks' histograms become their sum, in every block: each sums its share of the bins for all.
  __device__ void sum_bins() {
    cluster_sync();
    if (row_.blocks() == 1) return;
    const unsigned share = kBins / row_.blocks();
    for (unsigned i = threadIdx.x; i < share; i += kSampleThreads) {
      const unsigned bin = row_.rank() * share + i;
      Units parts[8], sum = 0;
#pragma unroll
      for (unsigned r = 0; r < 8; ++r) {
        parts[r] = r < row_.blocks() ? *in_block(reinterpret_cast<Units*>(&shared_.bins[bin]), r) : 0;
      }
#pragma unroll
      for (unsigned r = 0; r < 8; ++r) sum += parts[r];
#pragma unroll
      for (unsigned r = 0; r < 8; ++r) {
        if (r < row_.blocks()) *in_block(reinterpret_cast<Units*>(&shared_.bins[bin]), r) = sum;
      }
    }
    cluster_sync();
  }

  // The bin in which the running sum reaches `missing`, to shared_.found; clears the bins. `missing` is first
  // made from the sum of all where `first` says so. False when the sum of all does not reach it.
  template <class Target>
  __device__ bool find_bin(bool first, Units missing, Target target) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    uint4* bins = reinterpret_cast<uint4*>(shared_.bins) + threadIdx.x;
    const uint4 both = *bins;
    *bins = {0, 0, 0, 0};
    const Units a = Units{both.y} << 32 | both.x, b = Units{both.w} << 32 | both.z;
    const Units upto = lanes_running_sum(a + b, lane);
    if (lane == 31) shared_.warps[warp] = upto;
    __syncthreads();
    const Units warps = lanes_running_sum(shared_.warps[lane], lane), total = __shfl_sync(kLanes, warps, 31);
    if (first) missing = target(total);
    const Units before_warp = __shfl_sync(kLanes, warps, max(warp - 1, 0));
    const Units end = upto + (warp ? before_warp : 0), begin = end - a - b;
    if (begin < missing && missing <= end) {
      const bool second = missing > begin + a;
      shared_.found[0] = 2 * threadIdx.x + second;
      shared_.found[1] = missing - begin - (second ? a : 0);
      shared_.found[2] = second ? b : a;
    }
    __syncthreads();
    return missing <= total;
  }

  Row& row_;
  SampleShared& shared_;
  bool counts_ = false;
};

}  // namespace ssm::cuda
