// The passes over a row of scores that sampling_cpu.cpp is made of; each takes the best Highway target.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ssm::cpu {

constexpr size_t kSumBlock = 1024;  // scores a partial sum of weights covers

// The highest score that is not NaN, or -inf, and the lowest id that has it. Stores the maxima of `count`
// sets of scores that are disjoint, each of at most 16: a k-th largest of these is a lower bound of the k-th
// largest score. `maxima` has room for n / 16 + 256.
struct Highest {
  float score;
  int32_t id;
  size_t count;
};
Highest find_highest(const float* scores, size_t n, float* maxima);

// Ids and scores of what is finite and at least `low`, by id; both have room for n + 64. Returns how many.
size_t collect(const float* scores, size_t n, float low, float* kept, int32_t* ids);

// A score's weight is exp((score - highest) * inverse_temperature), 0 when that is below min_weight or NaN.
struct Weighting {
  float highest, inverse_temperature, min_weight;
};
void weigh(const float* scores, size_t n, const Weighting& weighting, float* weights);
// The sums of the weights' units over blocks of kSumBlock scores.
void sum_weights(const float* scores, size_t n, const Weighting& weighting, uint64_t* sums);

// A weight in [0, 1] as an integer, so that sums do not depend on their order; less than 2^-40 is nothing.
inline uint64_t units_of(float weight) { return static_cast<uint64_t>(weight * 0x1p40f); }

}  // namespace ssm::cpu
