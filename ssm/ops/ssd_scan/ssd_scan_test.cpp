#include "ssm/ops/ssd_scan/ssd_scan.h"

#include <gtest/gtest.h>

#include "ssm/core/parallel.h"
#include "ssm/ops/simd/test_targets.h"
#include "ssm/ops/ssd_scan/ssd_scan_cases.h"
#include "ssm/ops/ssd_scan/ssd_scan_reference.h"

namespace ssm {
namespace {

using test::same_bits;

struct Sizes {
  int64_t H, P, G, N;
};

std::string to_string(const Sizes& s, int64_t T) {
  return fmt::format("T {} H {} P {} G {} N {}", T, s.H, s.P, s.G, s.N);
}

Sizes random_sizes(Rng& rng) {
  constexpr int64_t kLarge[] = {64, 128, 256};
  const int64_t G = 1 + rng.below(3);
  return {G * (1 + rng.below(3)), rng.below(3) == 0 ? 16 << rng.below(3) : 1 + rng.below(70), G,
          rng.below(8) == 0 ? kLarge[rng.below(3)] : 1 + rng.below(40)};
}

// Mostly short, and often beside a multiple of the chunk.
int64_t random_length(Rng& rng) {
  if (rng.below(3) == 0) return 1 + rng.below(12);
  if (rng.below(2) == 0) return 1 + rng.below(2 * kSsdChunk);
  return kSsdChunk * (1 + rng.below(2)) - 1 + rng.below(3);
}

SsdScanArgs tokens(SsdScanArgs args, int64_t begin, int64_t end) {
  for (Tensor* x : {&args.x, &args.dt, &args.B, &args.C}) *x = x->slice(0, begin, end);
  return args;
}

std::vector<double> reference_scan(const SsdScanArgs& args, std::vector<double>& state) {
  const auto doubles = [](const Tensor& x) {
    return x.defined() ? test::to_doubles(x) : std::vector<double>();
  };
  reference::SsdScan<double> s;
  s.H = static_cast<size_t>(args.A.size(0)), s.P = static_cast<size_t>(args.x.size(1)) / s.H;
  s.G = static_cast<size_t>(args.groups), s.N = static_cast<size_t>(args.B.size(1)) / s.G;
  s.x = doubles(args.x), s.dt = doubles(args.dt), s.A = doubles(args.A), s.B = doubles(args.B);
  s.C = doubles(args.C), s.D = doubles(args.D), s.dt_bias = doubles(args.dt_bias);
  s.dt_softplus = args.dt_softplus, s.dt_min = args.dt_min, s.dt_max = args.dt_max;
  return reference::ssd_scan(s, state);
}

// A case with random operands left out, random limits, and rows that may lie in one wider tensor [z x B C
// dt].
SsdScanArgs random_case(int64_t T, const Sizes& size, Rng& rng) {
  SsdScanArgs args = test::ssd_scan_case(T, size.H, size.P, size.G, size.N, rng);
  const int64_t d_kind = rng.below(3);
  if (d_kind == 0) args.D = Tensor();
  if (d_kind == 1) args.D = test::random_normal({size.H * size.P}, rng);
  if (rng.below(3) == 0) args.dt_bias = Tensor();
  if (rng.below(4) == 0) args.dt_softplus = false;
  if (rng.below(3) == 0) args.dt_min = 0.02f, args.dt_max = 0.1f;
  if (rng.below(2) == 0) {
    int64_t width = 3;
    for (Tensor* x : {&args.x, &args.B, &args.C, &args.dt}) width += x->size(1) + 1;
    const Tensor wide = test::random_normal({T, width}, rng, 1e6f);
    int64_t column = 3;
    for (Tensor* x : {&args.x, &args.B, &args.C, &args.dt}) {
      const Tensor view = wide.slice(1, column, column + x->size(1));
      for (int64_t t = 0; t < T; ++t) {
        std::copy_n(x->data<float>() + t * x->stride(0), x->size(1), view.data<float>() + t * view.stride(0));
      }
      column += x->size(1) + 1;
      *x = view;
    }
  }
  return args;
}

TEST(SsdScan, EqualsTheReferenceOnEveryTarget) {
  test::for_each_target([] {
    Rng rng(1);
    for (int trial = 0; trial < 80; ++trial) {
      const Sizes size = random_sizes(rng);
      const int64_t T = trial % 4 == 0 ? 1 : random_length(rng);
      const SsdScanArgs args = random_case(T, size, rng);
      const Tensor state = test::random_normal({3, size.H, size.N, size.P}, rng), before = state.clone();
      std::vector<double> h = test::to_doubles(state.select(0, 1));
      const std::vector<double> expected = reference_scan(args, h);
      const Tensor y = ssd_scan(args, SequenceBatch::single(T, 1), state);
      EXPECT_LT(test::relative_error(y, expected), 2e-5) << to_string(size, T);
      EXPECT_LT(test::relative_error(state.select(0, 1), h), 2e-5) << to_string(size, T);
      EXPECT_TRUE(same_bits(state.select(0, 0), before.select(0, 0)));
      EXPECT_TRUE(same_bits(state.select(0, 2), before.select(0, 2)));
    }
  });
}

TEST(SsdScan, ANarrowStateIsReadAsItIsAndRoundedAtTheEnd) {
  test::for_each_target([] {
    Rng rng(11);
    for (int trial = 0; trial < 60; ++trial) {
      const Sizes size = random_sizes(rng);
      const DType dtype = trial % 2 ? DType::bf16 : DType::f16;
      const double unit = trial % 2 ? 0x1p-8 : 0x1p-11;
      const int64_t T = trial % 4 < 2 ? 1 : random_length(rng);
      const SsdScanArgs args = random_case(T, size, rng);
      const Tensor state = test::random_normal({3, size.H, size.N, size.P}, rng).to(dtype);
      const Tensor before = state.clone();
      std::vector<double> h = test::to_doubles(state.select(0, 1).to(DType::f32));
      const std::vector<double> expected = reference_scan(args, h);
      const Tensor y = ssd_scan(args, SequenceBatch::single(T, 1), state);
      // A token after the last whole chunk reads the state as it was rounded there.
      const bool twice = T % kSsdChunk == 1 && T > 1;
      EXPECT_LT(test::relative_error(y, expected), twice ? unit : 2e-5) << to_string(size, T);
      const double off = test::relative_error(state.select(0, 1).to(DType::f32), h);
      EXPECT_LT(off, twice ? 2 * unit : unit) << to_string(size, T);
      EXPECT_TRUE(same_bits(state.select(0, 0), before.select(0, 0)));
      EXPECT_TRUE(same_bits(state.select(0, 2), before.select(0, 2)));
    }
  });
}

TEST(SsdScan, AnAbsentStateIsZeros) {
  Rng rng(2);
  for (int trial = 0; trial < 40; ++trial) {
    const Sizes size = random_sizes(rng);
    const std::vector<int64_t> lengths{random_length(rng), 1 + rng.below(3)};
    const SequenceBatch batch(lengths, std::vector<int32_t>{4, 2});
    const SsdScanArgs args = random_case(batch.total(), size, rng);
    const Tensor zeros = Tensor::zeros({5, size.H, size.N, size.P});
    EXPECT_TRUE(same_bits(ssd_scan(args, batch, Tensor()), ssd_scan(args, batch, zeros)));
  }
}

// Runs the case whole and in pieces that end where `next` says.
template <class Next>
void expect_split(const SsdScanArgs& args, int64_t T, const Sizes& size, bool bits, Rng& rng, Next&& next) {
  const Tensor state = test::random_normal({1, size.H, size.N, size.P}, rng), again = state.clone();
  const Tensor y = ssd_scan(args, SequenceBatch::single(T), state);
  const Tensor pieces = Tensor::empty(y.shape());
  for (int64_t begin = 0; begin < T;) {
    const int64_t end = std::min(T, next(begin));
    const Tensor part = ssd_scan(tokens(args, begin, end), SequenceBatch::single(end - begin), again);
    std::copy_n(part.data<float>(), part.numel(), pieces.data<float>() + begin * y.size(1));
    begin = end;
  }
  if (bits) {
    EXPECT_TRUE(same_bits(pieces, y) && same_bits(again, state)) << to_string(size, T);
  } else {
    EXPECT_LT(test::relative_error(pieces, test::to_doubles(y)), 1e-5) << to_string(size, T);
    EXPECT_LT(test::relative_error(again, test::to_doubles(state)), 1e-5) << to_string(size, T);
  }
}

TEST(SsdScan, ASplitAtAChunkKeepsTheBits) {
  test::for_each_target([] {
    Rng rng(3);
    for (int trial = 0; trial < 20; ++trial) {
      const Sizes size = random_sizes(rng);
      const int64_t T = 1 + rng.below(5 * kSsdChunk);
      expect_split(random_case(T, size, rng), T, size, true, rng,
                   [&](int64_t begin) { return begin + kSsdChunk * (1 + rng.below(2)); });
    }
  });
}

TEST(SsdScan, AnySplitAgrees) {
  test::for_each_target([] {
    Rng rng(4);
    for (int trial = 0; trial < 30; ++trial) {
      const Sizes size = random_sizes(rng);
      const int64_t T = random_length(rng);
      expect_split(random_case(T, size, rng), T, size, false, rng, [&](int64_t begin) {
        return begin + (trial % 3 == 0 ? 1 : 1 + rng.below(trial % 3 == 1 ? 10 : 100));
      });
    }
  });
}

TEST(SsdScan, ARaggedBatchEqualsSingleRunsBitForBit) {
  Rng rng(5);
  for (int trial = 0; trial < 40; ++trial) {
    const Sizes size = random_sizes(rng);
    // Some batches are longer than a round holds.
    const int64_t sequences = trial % 10 == 0 ? 40 : 1 + rng.below(7);
    std::vector<int64_t> lengths;
    const std::vector<int32_t> slots = test::slots_in_any_order(sequences, sequences + 3, rng);
    for (int64_t b = 0; b < sequences; ++b)
      lengths.push_back(trial % 3 == 0 ? 1 + rng.below(2) : random_length(rng));
    const SequenceBatch batch(lengths, slots);
    const SsdScanArgs args = random_case(batch.total(), size, rng);
    const Tensor state = test::random_normal({sequences + 3, size.H, size.N, size.P}, rng);
    const Tensor alone = state.clone();
    const Tensor y = ssd_scan(args, batch, state);
    for (int64_t b = 0; b < sequences; ++b) {
      const Tensor single = ssd_scan(tokens(args, batch.offset(b), batch.offset(b + 1)),
                                     SequenceBatch::single(batch.length(b), batch.slot(b)), alone);
      EXPECT_TRUE(same_bits(single, y.slice(0, batch.offset(b), batch.offset(b + 1))))
          << to_string(size, batch.length(b));
    }
    EXPECT_TRUE(same_bits(alone, state));
  }
}

TEST(SsdScan, ThreadsDoNotChangeTheBits) {
  Rng rng(6);
  for (int trial = 0; trial < 15; ++trial) {
    const Sizes size = random_sizes(rng);
    const std::vector<int64_t> lengths{1 + rng.below(150), 1, 1 + rng.below(30)};
    const SequenceBatch batch(lengths, std::vector<int32_t>{2, 0, 1});
    const SsdScanArgs args = random_case(batch.total(), size, rng);
    const Tensor before = test::random_normal({3, size.H, size.N, size.P}, rng);
    Tensor first_y, first_state;
    for (const int threads : {1, 2, 3, 5}) {
      set_num_threads(threads);
      const Tensor state = before.clone();
      const Tensor y = ssd_scan(args, batch, state);
      if (!first_y.defined()) first_y = y, first_state = state;
      EXPECT_TRUE(same_bits(y, first_y) && same_bits(state, first_state)) << threads;
    }
    set_num_threads(0);
  }
}

// Strong decay over a long time, and steps so large that exp underflows in one.
TEST(SsdScan, ExtremesStayAccurate) {
  test::for_each_target([] {
    Rng rng(7);
    const Sizes size{4, 16, 2, 8};
    const int64_t T = 20 * kSsdChunk + 5;
    SsdScanArgs args = test::ssd_scan_case(T, size.H, size.P, size.G, size.N, rng);
    for (float& x : args.dt.values<float>()) {
      const int64_t kind = rng.below(8);
      x = kind == 0 ? 80.0f : kind == 1 ? -100.0f : kind == 2 ? 5.0f : kind == 3 ? 3e4f : x;
    }
    const Tensor state = test::random_normal({1, size.H, size.N, size.P}, rng);
    std::vector<double> h = test::to_doubles(state);
    const std::vector<double> expected = reference_scan(args, h);
    const Tensor y = ssd_scan(args, SequenceBatch::single(T), state);
    EXPECT_LT(test::relative_error(y, expected), 2e-5);
    EXPECT_LT(test::relative_error(state, h), 2e-5);
  });
}

TEST(SsdScan, NamesTheOperandOfAWrongShape) {
  Rng rng(8);
  const SsdScanArgs good = test::ssd_scan_case(4, 6, 3, 2, 5, rng);
  const auto message = [&](auto&& change, const Tensor& state = Tensor()) {
    SsdScanArgs args = good;
    change(args);
    try {
      ssd_scan(args, SequenceBatch::single(4), state);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  const Tensor bad = Tensor::zeros({4, 7});
  const auto named = [](const std::string& text, const std::string& name) {
    return text.find("ssd_scan: " + name + " ") == 0;
  };
  EXPECT_PRED2(named, message([&](auto& a) { a.x = bad; }), "x");
  EXPECT_PRED2(named, message([&](auto& a) { a.x = Tensor(); }), "x");
  EXPECT_PRED2(named, message([&](auto& a) { a.dt = bad; }), "dt");
  EXPECT_PRED2(named, message([&](auto& a) { a.A = bad; }), "A");
  EXPECT_PRED2(named, message([&](auto& a) { a.A = Tensor(); }), "A");
  EXPECT_PRED2(named, message([&](auto& a) { a.B = bad; }), "B");
  EXPECT_PRED2(named, message([&](auto& a) { a.C = a.C.to(DType::f16); }), "C");
  EXPECT_PRED2(named, message([&](auto& a) { a.D = bad; }), "D");
  EXPECT_PRED2(named, message([&](auto& a) { a.dt_bias = bad; }), "dt_bias");
  EXPECT_PRED2(named, message([](auto&) {}, bad), "state");
  EXPECT_PRED2(named, message([](auto& a) { a.groups = 4; }), "6");  // heads in 4 groups
}

}  // namespace
}  // namespace ssm
