#include "ssm/ops/sampling/sampling_cpu.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "ssm/core/parallel.h"
#include "ssm/core/rng.h"
#include "ssm/ops/sampling/sampling_simd.h"

namespace ssm::cpu {
namespace {

constexpr float kLargest = std::numeric_limits<float>::max();
constexpr uint64_t kStream = 1;  // of Philox

// A candidate in the decreasing order of scores, the lower id first of equals: greater comes first.
struct Key {
  float score;
  int32_t id;
  float weight;
  bool operator>(const Key& other) const {
    return score > other.score || (score == other.score && id < other.id);
  }
};

// What a row needs; kept by each thread, as a vocabulary's worth of memory is dear to map anew at each token.
struct Scratch {
  std::vector<float> scores, maxima, kept, weights;
  std::vector<int32_t> ids;
  std::vector<uint64_t> sums;
  std::vector<Key> keys;
};

template <class T>
T* grow(std::vector<T>& v, size_t n) {
  if (v.size() < n) v.resize(n);
  return v.data();
}

// The row with the penalty of what its slot has seen.
const float* penalise(const float* logits, size_t n, const uint8_t* seen, float penalty, Scratch& scratch) {
  float* scores = grow(scratch.scores, n);
  std::copy(logits, logits + n, scores);
  auto mark = [&](size_t i) {
    if (seen[i]) scores[i] = scores[i] < 0 ? scores[i] * penalty : scores[i] / penalty;
  };
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {  // few tokens of a vocabulary are marked
    uint64_t any;
    std::memcpy(&any, seen + i, 8);
    for (size_t j = 0; any && j < 8; ++j) mark(i + j);
  }
  for (; i < n; ++i) mark(i);
  return scores;
}

// A row with scores of +inf: they become the largest finite number. False when nothing is finite.
bool clamp(const float* row, size_t n, Scratch& scratch) {
  float* scores = grow(scratch.scores, n);
  bool any = false;
  for (size_t i = 0; i < n; ++i) {
    any = any || std::isfinite(row[i]);
    scores[i] = std::isnan(row[i]) ? -INFINITY : std::min(row[i], kLargest);
  }
  return any;
}

class Row {
 public:
  Row(const float* scores, size_t n, const SamplingParams& params, uint64_t draw, Scratch& scratch)
      : scores_(scores), n_(n), params_(params), draw_(draw), scratch_(scratch) {}

  // The token, or -1 when no score is finite.
  int32_t sample() {
    Highest highest = find_highest(scores_, n_, grow(scratch_.maxima, n_ / 16 + 256));
    if (highest.score == -INFINITY) return -1;
    if (highest.score == INFINITY) {
      if (!clamp(scores_, n_, scratch_)) return -1;
      scores_ = scratch_.scores.data();
      highest = find_highest(scores_, n_, scratch_.maxima.data());
    }
    if (params_.temperature == 0 || params_.top_k == 1) return highest.id;
    weighting_ = {highest.score, std::min(1 / params_.temperature, kLargest), 0.0f};
    const bool top_k = params_.top_k > 0 && static_cast<size_t>(params_.top_k) < n_;
    const bool top_p = params_.top_p > 0 && params_.top_p < 1;
    if (!top_k && !top_p) return draw_from_all();
    const uint64_t total = top_k ? keep_top_k(highest.count) : keep_likely();
    if (top_p) keep_first(mass_of(params_.top_p, total));
    return draw_from_kept();
  }

 private:
  // Every token at once: find the block of the draw by the blocks' sums, then the token in it.
  int32_t draw_from_all() {
    weighting_.min_weight = params_.min_p;
    const size_t blocks = (n_ + kSumBlock - 1) / kSumBlock;
    uint64_t* sums = grow(scratch_.sums, blocks);
    sum_weights(scores_, n_, weighting_, sums);
    uint64_t left = part_of(sum(sums, blocks));
    const size_t begin = pick(sums, blocks, left) * kSumBlock, size = std::min(n_ - begin, kSumBlock);
    float* weights = grow(scratch_.weights, kSumBlock);
    weigh(scores_ + begin, size, weighting_, weights);
    return static_cast<int32_t>(begin + pick(weights, size, left));
  }

  int32_t draw_from_kept() {
    float* weights = scratch_.weights.data();
    for (size_t i = 0; i < kept_; ++i) weights[i] = weights[i] < params_.min_p ? 0.0f : weights[i];
    const size_t blocks = (kept_ + kSumBlock - 1) / kSumBlock;
    uint64_t* sums = grow(scratch_.sums, blocks);
    for (size_t b = 0; b < blocks; ++b) {
      sums[b] = sum(weights + b * kSumBlock, std::min(kSumBlock, kept_ - b * kSumBlock));
    }
    uint64_t left = part_of(sum(sums, blocks));
    const size_t begin = pick(sums, blocks, left) * kSumBlock;
    return scratch_.ids[begin + pick(weights + begin, std::min(kSumBlock, kept_ - begin), left)];
  }

  static uint64_t units(float weight) { return units_of(weight); }
  static uint64_t units(uint64_t sum) { return sum; }

  template <class T>
  static uint64_t sum(const T* x, size_t n) {
    uint64_t total = 0;
    for (size_t i = 0; i < n; ++i) total += units(x[i]);
    return total;
  }

  // The least sum of units that reaches a part of the total.
  static uint64_t mass_of(float part, uint64_t total) {
    return static_cast<uint64_t>(std::ceil(static_cast<double>(part) * static_cast<double>(total)));
  }

  // The draw's place in a total: at least 0, below it.
  uint64_t part_of(uint64_t total) const {
    __extension__ using Wide = unsigned __int128;
    return static_cast<uint64_t>((Wide{draw_} * total) >> 64);
  }

  static float lowest(const float* x, size_t n) {
    std::array<float, 8> parts;
    parts.fill(x[0]);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
      for (size_t j = 0; j < 8; ++j) parts[j] = x[i + j] < parts[j] ? x[i + j] : parts[j];
    }
    for (; i < n; ++i) parts[0] = std::min(parts[0], x[i]);
    return *std::min_element(parts.begin(), parts.end());
  }

  // The first place whose running sum exceeds `left`, which becomes what is left at it; `left` is below the
  // sum of all.
  template <class T>
  static size_t pick(const T* weights, size_t n, uint64_t& left) {
    size_t i = 0;
    for (; i + 1 < n && left >= units(weights[i]); ++i) left -= units(weights[i]);
    return i;
  }

  // Candidates with a score of at least `low`, in the order of ids, and their weights.
  void collect_from(float low) {
    kept_ = collect(scores_, n_, low, grow(scratch_.kept, n_ + 64), grow(scratch_.ids, n_ + 64));
  }
  void weigh_kept() { weigh(scratch_.kept.data(), kept_, weighting_, grow(scratch_.weights, kept_)); }

  // Returns the weight of what is kept.
  uint64_t keep_top_k(size_t sets) {
    const auto k = static_cast<size_t>(params_.top_k);
    float low = -kLargest;
    if (k <= sets) {  // at least k scores reach the k-th largest of the sets' maxima
      auto maxima = scratch_.maxima.begin();
      std::nth_element(maxima, maxima + static_cast<int64_t>(k - 1), maxima + static_cast<int64_t>(sets),
                       std::greater<>());
      low = maxima[static_cast<int64_t>(k - 1)];
    }
    collect_from(low);
    if (kept_ > k) {
      scratch_.weights.assign(kept_, 1.0f);
      keep_first(k * units_of(1.0f));
    }
    weigh_kept();
    return sum(scratch_.weights.data(), kept_);
  }

  // What can be within top_p: tokens below (1 - top_p) / n together weigh less than what top_p leaves out.
  // Returns the weight of all tokens.
  uint64_t keep_likely() {
    const size_t blocks = (n_ + kSumBlock - 1) / kSumBlock;
    uint64_t* sums = grow(scratch_.sums, blocks);
    sum_weights(scores_, n_, weighting_, sums);
    const uint64_t total = sum(sums, blocks);
    const double weight = static_cast<double>(total) * 0x1p-40, temperature = params_.temperature;
    const double least = (1.0 - static_cast<double>(params_.top_p)) * weight / static_cast<double>(n_);
    const double low = weighting_.highest + temperature * (std::log(least) - 0.01);  // 0.01: for rounding
    const auto bound = static_cast<float>(std::max(low, -static_cast<double>(kLargest)));
    collect_from(std::nextafter(bound, -kLargest));
    weigh_kept();
    return total;
  }

  // Keeps the fewest candidates, from the highest score down, whose weights reach `mass`: looks for the last
  // of them in a histogram, then in halves of the keys that are left, until these are few enough to sort.
  void keep_first(uint64_t mass) {
    if (kept_ == 0) return;
    fill_keys(mass);
    auto lo = scratch_.keys.begin(), hi = scratch_.keys.end();
    while (hi - lo > 32) {
      const auto middle = lo + (hi - lo) / 2;
      std::nth_element(lo, middle, hi, std::greater<>());
      uint64_t half = 0;
      for (auto it = lo; it != middle; ++it) half += units_of(it->weight);
      if (half >= mass) {
        hi = middle;
      } else {
        mass -= half;
        lo = middle;
      }
    }
    std::sort(lo, hi, std::greater<>());
    for (; lo != hi - 1 && mass > units_of(lo->weight); ++lo) mass -= units_of(lo->weight);
    drop_after(lo->score, lo->id);
  }

  // The keys of candidates among which the running weight reaches `mass`, from which the weight of those
  // before them is taken. The histogram is over scores, linear from the highest to the lowest.
  void fill_keys(uint64_t& mass) {
    const float* kept = scratch_.kept.data();
    scratch_.keys.clear();
    auto add = [&](size_t i) { scratch_.keys.push_back({kept[i], scratch_.ids[i], scratch_.weights[i]}); };
    const double top = weighting_.highest, range = top - static_cast<double>(lowest(kept, kept_));
    if (kept_ <= 256 || range <= 0) {
      for (size_t i = 0; i < kept_; ++i) add(i);
      return;
    }
    constexpr size_t kBuckets = 2048;
    const double scale = (kBuckets - 1) / range;
    auto bucket = [&](size_t i) { return static_cast<size_t>((top - static_cast<double>(kept[i])) * scale); };
    std::array<uint64_t, kBuckets + 1> masses{};
    for (size_t i = 0; i < kept_; ++i) masses[bucket(i)] += units_of(scratch_.weights[i]);
    size_t last = 0;
    const auto end = static_cast<size_t>(range * scale);
    for (; last < end && masses[last] < mass; ++last) mass -= masses[last];
    for (size_t i = 0; i < kept_; ++i) {
      if (bucket(i) == last) add(i);
    }
  }

  // Drops the candidates after the one of this score and id; the others stay in the order of ids.
  void drop_after(float score, int32_t id) {
    size_t n = 0;
    for (size_t i = 0; i < kept_; ++i) {
      const float x = scratch_.kept[i];
      scratch_.kept[n] = x;
      scratch_.ids[n] = scratch_.ids[i];
      scratch_.weights[n] = scratch_.weights[i];
      const int before = x > score, equal = x == score, stays = scratch_.ids[i] <= id;
      n += static_cast<size_t>(before | (equal & stays));  // without branches: half of them would go wrong
    }
    kept_ = n;
  }

  const float* scores_;
  size_t n_;
  const SamplingParams& params_;
  uint64_t draw_;
  Scratch& scratch_;
  Weighting weighting_{};
  size_t kept_ = 0;
};

// 53 bits of Philox, at the top.
uint64_t draw_of(uint64_t seed, int64_t position) {
  const auto bits = philox4x32(seed, kStream, static_cast<uint64_t>(position));
  return ((uint64_t{bits[0]} << 32) | bits[1]) >> 11 << 11;
}

}  // namespace

void sample(const Tensor& logits, int64_t vocab, const Tensor& rows, const Tensor& seen, const Tensor& ids) {
  const int64_t B = logits.size(0), V = logits.size(1);
  const auto n = static_cast<size_t>(vocab);
  const std::span all(reinterpret_cast<SamplingRow*>(rows.raw()), static_cast<size_t>(B));
  for (const SamplingRow& row : all) {
    check(row.params);
    SSM_CHECK(seen.defined() || row.params.repetition_penalty == 1,
              "sampling: a repetition penalty of {} without `seen`", row.params.repetition_penalty);
    SSM_CHECK(!seen.defined() || (row.slot >= 0 && row.slot < seen.size(0)), "sampling: slot {} of {}",
              row.slot, seen.size(0));
  }
  int32_t* tokens = ids.data<int32_t>();
  auto seen_row = [&](const SamplingRow& row) { return seen.data<uint8_t>() + row.slot * V; };
  parallel_for(B, std::max<int64_t>(1, 4096 / vocab), [&](int64_t begin, int64_t end) {
    thread_local Scratch scratch;
    for (int64_t b = begin; b < end; ++b) {
      const SamplingRow& row = all[static_cast<size_t>(b)];
      const float penalty = row.params.repetition_penalty;
      const float* scores = logits.data<float>() + b * logits.stride(0);
      if (penalty != 1) scores = penalise(scores, n, seen_row(row), penalty, scratch);
      tokens[b] = Row(scores, n, row.params, draw_of(row.params.seed, row.position), scratch).sample();
    }
  });
  for (int64_t b = 0; b < B; ++b)
    SSM_CHECK(tokens[b] >= 0, "sampling: row {} of the logits has no finite score", b);
  for (int64_t b = 0; b < B; ++b) {
    SamplingRow& row = all[static_cast<size_t>(b)];
    if (seen.defined()) seen_row(row)[tokens[b]] = 1;
    ++row.position;
  }
}

}  // namespace ssm::cpu
