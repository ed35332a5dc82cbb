// sampling on a card: the same ids as the CPU's, without exception, for sums are integers and weights equal
// bit by bit (on a CPU with fused multiply-add: where there is none, a weight's last bit may decide).
#include <cstring>

#include "ssm/core/graph.h"
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/ops/sampling/sampling.h"

namespace ssm {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

SamplingParams random_params(Rng& rng, int64_t V) {
  SamplingParams p;
  p.temperature = rng.below(8) ? 0.2f + 2 * rng.uniform() : 0.0f;
  if (rng.below(20) == 0) p.temperature = rng.below(2) ? 1e-30f : 1e38f;
  if (rng.below(2)) p.top_k = static_cast<int32_t>(rng.below(rng.below(2) ? 60 : V + 3));
  if (rng.below(2)) p.top_p = rng.below(3) ? rng.uniform() : 1 - 1e-3f * rng.uniform();
  if (rng.below(3) == 0) p.min_p = 0.5f * rng.uniform() * rng.uniform();
  if (rng.below(2)) p.repetition_penalty = 0.5f + 2 * rng.uniform();
  p.seed = static_cast<uint64_t>(rng.below(1 << 30)) << 20;
  return p;
}

// Scores as of a language model, flat, tied, extreme, all alike, with -0, NaN and both infinities.
void fill_row(std::span<float> row, Rng& rng) {
  const int64_t kind = rng.below(8);
  const float scale = kind == 1 ? 0.01f : kind == 2 ? 1e37f : rng.below(2) ? 1.0f : 4.0f;
  const float mean = rng.below(3) ? 0.0f : 40 * rng.normal();
  for (float& x : row) {
    x = mean + scale * rng.normal();
    if (kind == 3) x = std::round(x);
    if (kind == 4) x = rng.below(2) ? -0.0f : 0.0f;
    if (kind == 5) x = mean;
    if (kind <= 3 && rng.below(20) == 0) x = rng.below(2) ? -INFINITY : kNan;
    if (kind == 6 && rng.below(3)) x = -INFINITY;
  }
  if (rng.below(20) == 0) row[static_cast<size_t>(rng.below(std::ssize(row)))] = INFINITY;
  if (rng.below(2)) row[static_cast<size_t>(rng.below(std::ssize(row)))] = mean + scale * 5;
}

struct Case {
  int64_t B, V, vocab, before;
  Tensor wide, seen;
  std::vector<SamplingParams> params;
  std::vector<int32_t> slots;
  std::vector<int64_t> positions;

  Case(int64_t batch, int64_t width, Rng& rng) : B(batch), V(width) {
    vocab = rng.below(2) ? V : 1 + rng.below(V);
    before = rng.below(3) ? 0 : rng.below(9);
    wide = Tensor::empty({B, V + before});
    seen = Tensor::zeros({B + 2, V}, DType::u8);
    for (uint8_t& mark : seen.values<uint8_t>()) mark = rng.below(4) == 0;
    for (int64_t b = 0; b < B; ++b) {
      const std::span row(wide.data<float>() + b * (V + before), static_cast<size_t>(before + V));
      fill_row(row, rng);
      row[static_cast<size_t>(before + rng.below(vocab))] = rng.normal();
      params.push_back(random_params(rng, V));
      slots.push_back(static_cast<int32_t>(B + 1 - b));
      positions.push_back(rng.below(100000));
    }
  }
  Tensor columns(const Tensor& t) const { return t.slice(1, before, before + V); }

  // `steps` calls on each device with the same rows: the same ids, marks and positions.
  void expect_equal(int steps) const {
    const Tensor rows = sampling_rows(params, slots, positions), marks = seen.clone();
    const Tensor ids = Tensor::zeros({B}, DType::i32);
    const Tensor card_rows = rows.to(kCuda), card_marks = marks.to(kCuda), card_ids = ids.to(kCuda);
    const Tensor logits = wide.to(kCuda);
    for (int step = 0; step < steps; ++step) {
      sample(columns(wide), vocab, rows, marks, ids);
      sample(columns(logits), vocab, card_rows, card_marks, card_ids);
      const Tensor got = card_ids.to(kCpu);
      for (int64_t b = 0; b < B; ++b) {
        const SamplingParams& p = params[static_cast<size_t>(b)];
        ASSERT_EQ(got.data<int32_t>()[b], ids.data<int32_t>()[b])
            << fmt::format("B {} V {} vocab {} temperature {} k {} p {} min_p {} penalty {}", B, V, vocab,
                           p.temperature, p.top_k, p.top_p, p.min_p, p.repetition_penalty);
      }
    }
    EXPECT_TRUE(same_bits(card_rows.to(kCpu), rows));
    EXPECT_TRUE(same_bits(card_marks.to(kCpu), marks));
    EXPECT_EQ(0, std::memcmp(logits.to(kCpu).raw(), wide.raw(), wide.bytes()));  // left as they are
  }
};

TEST(SamplingCuda, ChoosesTheIdsOfTheCpu) {
  SSM_NEED_CUDA();
  Rng rng(31);
  for (int trial = 0; trial < 1500; ++trial) {
    const int64_t B = 1 + rng.below(rng.below(4) ? 6 : 40);
    const int64_t V = 1 + rng.below(rng.below(3) ? 80 : 9000);
    Case(B, V, rng).expect_equal(3);
  }
}

// The widths of models, and every number of blocks a row; 500,000 scores do not fit into shared memory.
TEST(SamplingCuda, ChoosesTheIdsOfTheCpuFromLargeVocabularies) {
  SSM_NEED_CUDA();
  Rng rng(32);
  for (const auto& [B, V, trials] : {std::tuple<int64_t, int64_t, int>{1, 50280, 60},
                                     {1, 65024, 20},
                                     {7, 50277, 8},
                                     {16, 50280, 3},
                                     {32, 50280, 2},
                                     {64, 50280, 2},
                                     {140, 50280, 1},
                                     {140, 65024, 1},
                                     {2, 500000, 10}}) {
    for (int trial = 0; trial < trials; ++trial) Case(B, V, rng).expect_equal(trials > 3 ? 3 : 1);
  }
}

TEST(SamplingCuda, ARowWithoutAnAnswerGivesMinusOne) {
  SSM_NEED_CUDA();
  for (const float t : {0.0f, 1.0f}) {
    for (const float bad : {kNan, -INFINITY, INFINITY}) {
      const Tensor logits = Tensor::zeros({4, 40}), seen = Tensor::zeros({4, 40}, DType::u8);
      for (int64_t v = 0; v < 40; ++v) logits.data<float>()[40 + v] = v < 39 ? bad : 1.0f;
      const std::vector<SamplingParams> params(4, SamplingParams{.temperature = t, .seed = 7});
      const std::vector<int64_t> positions(4, 5), after(4, 6);
      const std::vector<int32_t> slots{0, 1, 4, 3};  // no slot 4
      const Tensor rows = sampling_rows(params, slots, positions).to(kCuda), marks = seen.to(kCuda);
      const Tensor ids = Tensor::zeros({4}, DType::i32, kCuda);
      sample(logits.to(kCuda), 39, rows, marks, ids);  // the finite score of row 1 is masked
      const Tensor got = ids.to(kCpu), marked = marks.to(kCpu);
      for (int64_t b = 0; b < 4; ++b) {
        const bool answered = b == 0 || b == 3;
        EXPECT_EQ(got.data<int32_t>()[b] >= 0, answered);
        EXPECT_EQ(std::count(marked.data<uint8_t>() + 40 * b, marked.data<uint8_t>() + 40 * b + 40, 1),
                  answered);
      }
      EXPECT_TRUE(same_bits(rows.to(kCpu), sampling_rows(params, slots, after)));
    }
  }
}

// A captured step replays with what its tensors then hold: logits change, parameters change, positions
// advance by themselves and the ids stand where the next step reads them.
TEST(SamplingCuda, ReplaysInAGraph) {
  SSM_NEED_CUDA();
  Rng rng(33);
  for (const auto& [B, V] : {std::pair<int64_t, int64_t>{1, 50280}, {5, 3001}}) {
    Case c(B, V, rng);
    c.before = 0, c.vocab = V;
    c.wide = Tensor::zeros({B, V});
    const Tensor rows = sampling_rows(c.params, c.slots, c.positions), marks = c.seen.clone();
    const Tensor ids = Tensor::zeros({B}, DType::i32), logits = c.wide.to(kCuda);
    const Tensor card_rows = rows.to(kCuda), card_marks = marks.to(kCuda), card_ids = ids.to(kCuda);
    const Graph graph([&] { sample(logits, V, card_rows, card_marks, card_ids); });
    for (int step = 0; step < 40; ++step) {
      for (int64_t b = 0; b < B; ++b) {
        std::span row(c.wide.data<float>() + b * V, static_cast<size_t>(V));
        fill_row(row, rng);
        row[0] = rng.normal();
      }
      if (step % 8 == 7) {  // other requests take the rows' places
        for (SamplingParams& p : c.params) p = random_params(rng, V);
        const Tensor fresh = sampling_rows(c.params, c.slots, c.positions);
        std::memcpy(rows.raw(), fresh.raw(), fresh.bytes());
        copy_bytes(card_rows.raw(), kCuda, fresh.raw(), kCpu, fresh.bytes());
      }
      copy_bytes(logits.raw(), kCuda, c.wide.raw(), kCpu, c.wide.bytes());
      sample(c.wide, V, rows, marks, ids);
      graph.replay();
      ASSERT_TRUE(same_bits(card_ids.to(kCpu), ids)) << step;
    }
    EXPECT_TRUE(same_bits(card_rows.to(kCpu), rows));
    EXPECT_TRUE(same_bits(card_marks.to(kCpu), marks));
  }
}

}  // namespace
}  // namespace ssm
