#include "ssm/ops/selective_scan/selective_scan.h"

#include <gtest/gtest.h>

#include "ssm/core/parallel.h"
#include "ssm/ops/selective_scan/selective_scan_test.h"
#include "ssm/ops/simd/test_targets.h"

namespace ssm {
namespace {

using test::reference_scan;
using test::same_bits;
using test::tokens;

// The same values as rows of a wider tensor.
Tensor widened(const Tensor& x, Rng& rng) {
  const int64_t before = rng.below(5), after = rng.below(5);
  const Tensor wide = test::random_normal({x.size(0), before + x.size(1) + after}, rng, 1e6f);
  for (int64_t t = 0; t < x.size(0); ++t) {
    std::copy_n(x.data<float>() + t * x.stride(0), x.size(1),
                wide.data<float>() + t * wide.stride(0) + before);
  }
  return wide.slice(1, before, before + x.size(1));
}

// A case with random operands left out, and random layouts.
SelectiveScanArgs random_case(int64_t T, int64_t E, int64_t N, Rng& rng) {
  SelectiveScanArgs args = test::random_selective_scan(T, E, N, rng);
  if (rng.below(2) == 0) test::for_activations(args, [&](const Tensor& x) { return widened(x, rng); });
  return args;
}

int64_t random_N(Rng& rng) {
  constexpr int64_t kLarge[] = {64, 128, 256};
  return rng.below(8) == 0 ? kLarge[rng.below(3)] : 1 + rng.below(40);
}

TEST(SelectiveScan, EqualsTheReferenceOnEveryTarget) {
  test::for_each_target([] {
    Rng rng(1);
    for (int trial = 0; trial < 120; ++trial) {
      const int64_t T = 1 + rng.below(trial % 4 == 0 ? 1 : 20), E = 1 + rng.below(90), N = random_N(rng);
      const SelectiveScanArgs args = random_case(T, E, N, rng);
      const Tensor state = test::random_normal({3, N, E}, rng);
      const Tensor before = state.clone();
      std::vector<double> h = test::to_doubles(state.select(0, 1));
      const std::vector<double> expected = reference_scan(args, h);
      const Tensor y = selective_scan(args, SequenceBatch::single(T, 1), state);
      EXPECT_LT(test::relative_error(y, expected), 2e-5) << T << " " << E << " " << N;
      EXPECT_LT(test::relative_error(state.select(0, 1), h), 2e-5) << T << " " << E << " " << N;
      EXPECT_TRUE(same_bits(state.select(0, 0), before.select(0, 0)));
      EXPECT_TRUE(same_bits(state.select(0, 2), before.select(0, 2)));
    }
  });
}

TEST(SelectiveScan, ANarrowStateIsReadAsItIsAndRoundedAtTheEnd) {
  test::for_each_target([] {
    Rng rng(11);
    for (int trial = 0; trial < 80; ++trial) {
      const int64_t T = 1 + rng.below(trial % 4 < 2 ? 1 : 20), E = 1 + rng.below(90), N = random_N(rng);
      const DType dtype = trial % 2 ? DType::bf16 : DType::f16;
      const SelectiveScanArgs args = random_case(T, E, N, rng);
      const Tensor state = test::random_normal({3, N, E}, rng).to(dtype), before = state.clone();
      std::vector<double> h = test::to_doubles(state.select(0, 1).to(DType::f32));
      const std::vector<double> expected = reference_scan(args, h);
      const Tensor y = selective_scan(args, SequenceBatch::single(T, 1), state);
      EXPECT_LT(test::relative_error(y, expected), 2e-5) << T << " " << E << " " << N;
      EXPECT_LT(test::relative_error(state.select(0, 1).to(DType::f32), h), trial % 2 ? 0x1p-8 : 0x1p-11);
      EXPECT_TRUE(same_bits(state.select(0, 0), before.select(0, 0)));
      EXPECT_TRUE(same_bits(state.select(0, 2), before.select(0, 2)));
    }
  });
}

TEST(SelectiveScan, AnAbsentStateIsZeros) {
  Rng rng(2);
  for (int trial = 0; trial < 50; ++trial) {
    const int64_t T = 1 + rng.below(9), E = 1 + rng.below(90), N = 1 + rng.below(20);
    const SelectiveScanArgs args = random_case(T, E, N, rng);
    const Tensor zeros = Tensor::zeros({1, N, E});
    EXPECT_TRUE(same_bits(selective_scan(args, SequenceBatch::single(T), Tensor()),
                          selective_scan(args, SequenceBatch::single(T), zeros)));
  }
}

TEST(SelectiveScan, ASplitKeepsTheBits) {
  test::for_each_target([] {
    Rng rng(3);
    for (int trial = 0; trial < 60; ++trial) {
      const int64_t T = 1 + rng.below(30), E = 1 + rng.below(90), N = random_N(rng);
      SelectiveScanArgs args = random_case(T, E, N, rng);
      if (trial % 5 == 0)
        args.delta_bias = test::random_normal({E}, rng, 30.0f);  // exp leaves its fast range
      const Tensor state = test::random_normal({1, N, E}, rng), again = state.clone();
      const Tensor y = selective_scan(args, SequenceBatch::single(T), state);
      for (int64_t begin = 0; begin < T;) {
        const int64_t end = trial % 3 == 0 ? begin + 1 : begin + 1 + rng.below(T - begin);
        const Tensor part =
            selective_scan(tokens(args, begin, end), SequenceBatch::single(end - begin), again);
        EXPECT_TRUE(same_bits(part, y.slice(0, begin, end))) << T << " " << E << " " << N;
        begin = end;
      }
      EXPECT_TRUE(same_bits(again, state)) << T << " " << E << " " << N;
    }
  });
}

TEST(SelectiveScan, ARaggedBatchEqualsSingleRunsBitForBit) {
  Rng rng(4);
  for (int trial = 0; trial < 60; ++trial) {
    const int64_t size = 1 + rng.below(7), E = 1 + rng.below(150), N = random_N(rng);
    std::vector<int64_t> lengths;
    const std::vector<int32_t> slots = test::slots_in_any_order(size, size + 3, rng);
    for (int64_t b = 0; b < size; ++b) lengths.push_back(trial % 3 == 0 ? 1 : 1 + rng.below(9));
    const SequenceBatch batch(lengths, slots);
    const SelectiveScanArgs args = random_case(batch.total(), E, N, rng);
    const Tensor state = test::random_normal({size + 3, N, E}, rng), alone = state.clone();
    const Tensor y = selective_scan(args, batch, state);
    for (int64_t b = 0; b < size; ++b) {
      const Tensor single = selective_scan(tokens(args, batch.offset(b), batch.offset(b + 1)),
                                           SequenceBatch::single(batch.length(b), batch.slot(b)), alone);
      EXPECT_TRUE(same_bits(single, y.slice(0, batch.offset(b), batch.offset(b + 1))));
    }
    EXPECT_TRUE(same_bits(alone, state));
  }
}

TEST(SelectiveScan, ThreadsDoNotChangeTheBits) {
  Rng rng(5);
  for (int trial = 0; trial < 20; ++trial) {
    const int64_t E = 1 + rng.below(400), N = 1 + rng.below(20);
    const std::vector<int64_t> lengths{1 + rng.below(20), 1, 1 + rng.below(5)};
    const SequenceBatch batch(lengths, std::vector<int32_t>{2, 0, 1});
    const SelectiveScanArgs args = random_case(batch.total(), E, N, rng);
    const Tensor before = test::random_normal({3, N, E}, rng);
    Tensor first_y, first_state;
    for (const int threads : {1, 2, 3, 5}) {
      set_num_threads(threads);
      const Tensor state = before.clone();
      const Tensor y = selective_scan(args, batch, state);
      if (!first_y.defined()) first_y = y, first_state = state;
      EXPECT_TRUE(same_bits(y, first_y) && same_bits(state, first_state)) << threads;
    }
    set_num_threads(0);
  }
}

TEST(SelectiveScan, ExtremesStayFinite) {
  test::for_each_target([] {
    Rng rng(6);
    const int64_t T = 400, E = 40, N = 16;
    SelectiveScanArgs args = test::selective_scan_case(T, E, N, rng);
    for (int64_t i = 0; i < T * E; ++i) {
      float& x = args.delta.values<float>()[static_cast<size_t>(i)];
      const int64_t kind = rng.below(6);
      x = kind == 0 ? 80.0f : kind == 1 ? -100.0f : kind == 2 ? 5.0f : kind == 3 ? 3e4f : x;
      if (kind == 4) args.z.values<float>()[static_cast<size_t>(i)] = rng.below(2) ? 200.0f : -200.0f;
    }
    const Tensor state = Tensor::zeros({1, N, E});
    std::vector<double> h(static_cast<size_t>(N * E), 0.0);
    const std::vector<double> expected = reference_scan(args, h);
    const Tensor y = selective_scan(args, SequenceBatch::single(T), state);
    EXPECT_LT(test::relative_error(y, expected), 2e-5);
    EXPECT_LT(test::relative_error(state, h), 2e-5);
  });
}

TEST(SelectiveScan, NamesTheOperandOfAWrongShape) {
  Rng rng(7);
  const SelectiveScanArgs good = test::selective_scan_case(4, 6, 3, rng);
  const auto message = [&](auto&& change, const Tensor& state = Tensor()) {
    SelectiveScanArgs args = good;
    change(args);
    try {
      selective_scan(args, SequenceBatch::single(4), state);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  const Tensor bad = Tensor::zeros({4, 5});
  const auto named = [](const std::string& text, const std::string& name) {
    return text.find("selective_scan: " + name + " ") == 0;
  };
  EXPECT_PRED2(named, message([&](auto& a) { a.u = bad; }), "A");
  EXPECT_PRED2(named, message([&](auto& a) { a.u = Tensor(); }), "u");
  EXPECT_PRED2(named, message([&](auto& a) { a.delta = bad; }), "delta");
  EXPECT_PRED2(named, message([&](auto& a) { a.A = Tensor(); }), "A");
  EXPECT_PRED2(named, message([&](auto& a) { a.A = a.A.clone().to(DType::bf16); }), "A");
  EXPECT_PRED2(named, message([&](auto& a) { a.B = bad; }), "B");
  EXPECT_PRED2(named, message([&](auto& a) { a.C = a.C.to(DType::f16); }), "C");
  EXPECT_PRED2(named, message([&](auto& a) { a.D = bad; }), "D");
  EXPECT_PRED2(named, message([&](auto& a) { a.z = bad; }), "z");
  EXPECT_PRED2(named, message([&](auto& a) { a.delta_bias = bad; }), "delta_bias");
  EXPECT_PRED2(named, message([](auto&) {}, bad), "state");
}

}  // namespace
}  // namespace ssm
