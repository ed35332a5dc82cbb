#include <algorithm>
#include <cmath>
#include <vector>

#include "ssm/core/parallel.h"
#include "ssm/ops/attention/attention_cpu.h"
#include "ssm/ops/simd/scratch.h"

namespace ssm::cpu {

namespace {
struct RotaryScratch {};
}  // namespace

// In double: at position 100,000 an angle in f32 would be off by 0.004.
const float* rotary_table(const AttentionHeads& heads, const SequenceBatch& batch,
                          std::span<const int64_t> begins) {
  const int64_t T = batch.total(), half = heads.rotary_dim / 2;
  float* const table = thread_scratch<RotaryScratch>(std::max<int64_t>(1, 2 * T * half));
  std::vector<double> frequency(static_cast<size_t>(half));
  for (int64_t i = 0; i < half; ++i) {
    frequency[static_cast<size_t>(i)] =
        std::pow(heads.rotary_base, -2.0 * static_cast<double>(i) / static_cast<double>(heads.rotary_dim));
  }
  std::vector<int64_t> position(static_cast<size_t>(T));
  for (int64_t b = 0; b < batch.size(); ++b) {
    for (int64_t i = 0; i < batch.length(b); ++i)
      position[static_cast<size_t>(batch.offset(b) + i)] = begins[static_cast<size_t>(b)] + i;
  }
  parallel_for(T, 32, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t i = 0; i < half; ++i) {
        const double angle =
            static_cast<double>(position[static_cast<size_t>(t)]) * frequency[static_cast<size_t>(i)];
        table[t * half + i] = static_cast<float>(std::cos(angle));
        table[(T + t) * half + i] = static_cast<float>(std::sin(angle));
      }
    }
  });
  return table;
}

void rotate(const float* x, const float* cosines, const float* sines, const AttentionHeads& heads,
            float scale, bool back, float* to) {
  const int64_t half = heads.rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half], c = cosines[i], s = back ? -sines[i] : sines[i];
    to[i] = (a * c - b * s) * scale;
    to[i + half] = (b * c + a * s) * scale;
  }
  for (int64_t i = 2 * half; i < heads.head_dim; ++i) to[i] = x[i] * scale;
}

int64_t query_column(const AttentionHeads& h, int64_t head) {
  return h.by_head ? 3 * head * h.head_dim : head * h.head_dim;
}
int64_t key_column(const AttentionHeads& h, int64_t head) {
  return h.by_head ? (3 * head + 1) * h.head_dim : (h.heads + head) * h.head_dim;
}
int64_t value_column(const AttentionHeads& h, int64_t head) {
  return h.by_head ? (3 * head + 2) * h.head_dim : (h.heads + h.kv_heads + head) * h.head_dim;
}

}  // namespace ssm::cpu
