// selective_scan on a card against the f64 reference, in every type of activations and states.

#include "ssm/core/graph.h"
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/ops/selective_scan/selective_scan_test.h"

namespace ssm {
namespace {

using test::for_activations;
using test::reference_scan;
using test::tokens;

// Inputs are taken as the 16-bit values they are and everything inside is f32: a 16-bit result is off by its
// own rounding only.
constexpr double kBound = 2e-5;

std::vector<double> doubles(const Tensor& t) { return t.defined() ? to_doubles(t) : std::vector<double>(); }

// A case with random operands left out, on the host; activations are values that `dtype` holds.
SelectiveScanArgs random_case(int64_t T, int64_t E, int64_t N, DType dtype, Rng& rng) {
  SelectiveScanArgs args = test::random_selective_scan(T, E, N, rng);
  for_activations(args, [&](const Tensor& x) { return rounded(x, dtype); });
  return args;
}

// The same on the card; activations as columns of wider tensors, aligned or not, in half of the cases.
SelectiveScanArgs upload(SelectiveScanArgs args, DType dtype, Rng& rng) {
  const bool wide = rng.below(2);
  for_activations(args, [&](const Tensor& x) {
    const int64_t T = x.size(0), C = x.size(1);
    const int64_t left = wide ? 8 * rng.below(3) + (rng.below(4) ? 0 : 3) : 0;
    const int64_t right = wide ? rng.below(2) * 8 : 0;
    const Tensor all = test::random_normal({T, left + C + right}, rng, 1e6f);
    for (int64_t t = 0; t < T; ++t)
      std::copy_n(x.data<float>() + t * x.stride(0), C, all.data<float>() + t * all.size(1) + left);
    return on_card(all, dtype).slice(1, left, left + C);
  });
  for (Tensor* x : {&args.A, &args.D, &args.delta_bias}) *x = on_card(*x);
  return args;
}

int64_t random_N(Rng& rng) {
  constexpr int64_t kLarge[] = {17, 64, 128, 256};
  return rng.below(8) == 0 ? kLarge[rng.below(4)] : rng.below(3) == 0 ? 16 : 1 + rng.below(40);
}

// Runs `args` on the card as `batch` and holds y and every slot's state to the reference.
void expect_reference(const SelectiveScanArgs& args, const SequenceBatch& batch, DType dtype,
                      DType state_dtype, bool stateful, Rng& rng, const std::string& name,
                      double bound = kBound) {
  const int64_t E = args.A.size(0), N = args.A.size(1), slots = batch.max_slot() + 2;
  const Tensor before = rounded(test::random_normal({slots, N, E}, rng), state_dtype);
  const Tensor state = stateful ? on_card(before, state_dtype) : Tensor();
  const Tensor y = selective_scan(upload(args, dtype, rng), batch, state).to(kCpu);
  const Tensor after = stateful ? state.to(kCpu) : Tensor();
  std::vector<bool> used(static_cast<size_t>(slots));
  for (int64_t b = 0; b < batch.size(); ++b) {
    const int64_t begin = batch.offset(b), end = batch.offset(b + 1), slot = batch.slot(b);
    std::vector<double> h(static_cast<size_t>(N * E), 0.0);
    if (stateful) h = doubles(before.select(0, slot));
    const std::vector<double> expected = reference_scan(tokens(args, begin, end), h);
    EXPECT_LT(test::relative_error(y.slice(0, begin, end), expected), bound + rounding_of(dtype))
        << name << " sequence " << b;
    if (!stateful) continue;
    EXPECT_LT(test::relative_error(after.select(0, slot), h), bound + rounding_of(state_dtype))
        << name << " state of sequence " << b;
    used[static_cast<size_t>(slot)] = true;
  }
  for (int64_t slot = 0; stateful && slot < slots; ++slot) {
    if (used[static_cast<size_t>(slot)]) continue;
    EXPECT_TRUE(same_bits(after.select(0, slot), before.select(0, slot).to(state_dtype))) << name;
  }
}

TEST(SelectiveScanCuda, EqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(41);
  for (int trial = 0; trial < 240; ++trial) {
    const int64_t N = random_N(rng), size = 1 + rng.below(4);
    const int64_t E = rng.below(2) ? 8 * (1 + rng.below(20)) : 1 + rng.below(200);
    std::vector<int64_t> lengths;
    const bool step = trial % 4 == 0;
    for (int64_t b = 0; b < size; ++b) lengths.push_back(step ? 1 : 1 + rng.below(rng.below(3) ? 40 : 150));
    const SequenceBatch batch(lengths, test::slots_in_any_order(size, size + 3, rng));
    const DType dtype = kTypes[rng.below(3)], state_dtype = kTypes[rng.below(3)];
    const SelectiveScanArgs args = random_case(batch.total(), E, N, dtype, rng);
    expect_reference(args, batch, dtype, state_dtype, rng.below(4) > 0, rng,
                     fmt::format("lengths {} E {} N {} {} states {}", fmt::join(lengths, ","), E, N,
                                 name_of(dtype), name_of(state_dtype)));
  }
}

// Enough channels or batch for a step's wide kernel.
TEST(SelectiveScanCuda, AStepOfManyEqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(42);
  for (const int64_t B : {1, 24, 67}) {
    for (const int64_t E : {1536, 5120}) {
      for (const DType dtype : kTypes) {
        const SelectiveScanArgs args = random_case(B, E, 16, dtype, rng);
        const std::vector<int64_t> ones(static_cast<size_t>(B), 1);
        expect_reference(args, SequenceBatch(ones, test::slots_in_any_order(B, B + 5, rng)), dtype,
                         kTypes[rng.below(3)], true, rng, fmt::format("{} steps of {} channels", B, E));
      }
    }
  }
}

TEST(SelectiveScanCuda, EveryLengthAroundAChunk) {
  SSM_NEED_CUDA();
  Rng rng(43);
  for (const int64_t near : {16, 32, 64, 128, 256, 512, 1024, 2048, 4096}) {
    for (const int64_t T : {near - 1, near, near + 1}) {
      const int64_t E = 1 + rng.below(40), N = rng.below(2) ? 16 : 1 + rng.below(40);
      const DType dtype = kTypes[rng.below(3)];
      expect_reference(random_case(T, E, N, dtype, rng), SequenceBatch::single(T, 1), dtype, DType::f32, true,
                       rng, fmt::format("T {} E {} N {} {}", T, E, N, name_of(dtype)));
    }
  }
}

TEST(SelectiveScanCuda, LongSequences) {
  SSM_NEED_CUDA();
  Rng rng(44);
  for (const auto& [T, E, N] : {std::array<int64_t, 3>{65537, 24, 16}, {65537, 5, 40}, {1048577, 3, 4}}) {
    const SelectiveScanArgs args = random_case(T, E, N, DType::bf16, rng);
    expect_reference(args, SequenceBatch::single(T), DType::bf16, DType::f32, true, rng,
                     fmt::format("T {} E {} N {}", T, E, N));
  }
  // Slow channels: what a state held ten thousand tokens ago still counts, and rounding errors add up.
  SelectiveScanArgs slow = test::selective_scan_case(20000, 8, 16, rng);
  for (float& x : slow.delta.values<float>()) x = x - 6.0f;
  expect_reference(slow, SequenceBatch::single(20000), DType::f32, DType::f32, true, rng, "slow", 1e-4);
}

// Split over calls at random places: y and the last state are those of the reference over the whole.
TEST(SelectiveScanCuda, AnySplitAgrees) {
  SSM_NEED_CUDA();
  Rng rng(45);
  for (int trial = 0; trial < 60; ++trial) {
    const int64_t T = 1 + rng.below(trial % 6 ? 100 : 3000), E = 1 + rng.below(90), N = random_N(rng);
    const DType dtype = kTypes[rng.below(3)];
    const SelectiveScanArgs args = random_case(T, E, N, dtype, rng), card = upload(args, dtype, rng);
    const Tensor before = test::random_normal({1, N, E}, rng), state = on_card(before);
    std::vector<double> h = doubles(before);
    const std::vector<double> expected = reference_scan(args, h);
    for (int64_t begin = 0; begin < T;) {
      const int64_t end = trial % 3 == 0 && T < 200 ? begin + 1 : begin + 1 + rng.below(T - begin);
      const Tensor y = selective_scan(tokens(card, begin, end), SequenceBatch::single(end - begin), state);
      const std::vector<double> part(expected.begin() + begin * E, expected.begin() + end * E);
      // Relative to the part's own size, which may be small by chance.
      EXPECT_LT(card_error(y, part), 2 * (kBound + rounding_of(dtype)))
          << T << " " << E << " " << N << " rows " << begin << " to " << end;
      begin = end;
    }
    EXPECT_LT(card_error(state, h), kBound) << T << " " << E << " " << N;
  }
}

TEST(SelectiveScanCuda, ARaggedBatchEqualsSingleRuns) {
  SSM_NEED_CUDA();
  Rng rng(46);
  for (int trial = 0; trial < 40; ++trial) {
    const int64_t size = 1 + rng.below(7), E = 1 + rng.below(300), N = random_N(rng);
    std::vector<int64_t> lengths;
    for (int64_t b = 0; b < size; ++b) lengths.push_back(1 + rng.below(rng.below(3) ? 9 : 400));
    const SequenceBatch batch(lengths, test::slots_in_any_order(size, size + 3, rng));
    const DType dtype = kTypes[rng.below(3)];
    const SelectiveScanArgs args = upload(random_case(batch.total(), E, N, dtype, rng), dtype, rng);
    const Tensor before = test::random_normal({size + 3, N, E}, rng);
    const Tensor state = on_card(before), alone = on_card(before);
    const Tensor y = selective_scan(args, batch, state).to(kCpu);
    for (int64_t b = 0; b < size; ++b) {
      const int64_t begin = batch.offset(b), end = batch.offset(b + 1);
      const Tensor single =
          selective_scan(tokens(args, begin, end), SequenceBatch::single(end - begin, batch.slot(b)), alone);
      // Two roundings may differ by a whole unit.
      EXPECT_LT(card_error(single, doubles(y.slice(0, begin, end))), kBound + 2 * rounding_of(dtype));
    }
    EXPECT_LT(card_error(alone, doubles(state.to(kCpu))), kBound);
  }
}

TEST(SelectiveScanCuda, ExtremesStayFinite) {
  SSM_NEED_CUDA();
  Rng rng(47);
  const int64_t E = 40, N = 16;
  for (const int64_t T : {1, 400, 5000}) {
    SelectiveScanArgs args = test::selective_scan_case(T, E, N, rng);
    for (int64_t i = 0; i < T * E; ++i) {
      float& x = args.delta.values<float>()[static_cast<size_t>(i)];
      const int64_t kind = rng.below(6);
      x = kind == 0 ? 80.0f : kind == 1 ? -100.0f : kind == 2 ? 5.0f : kind == 3 ? 3e4f : x;
      if (kind == 4) args.z.values<float>()[static_cast<size_t>(i)] = rng.below(2) ? 200.0f : -200.0f;
    }
    expect_reference(args, SequenceBatch::single(T), DType::f32, DType::f32, true, rng,
                     fmt::format("T {}", T));
  }
}

// A captured step reads its slots when it is replayed.
TEST(SelectiveScanCuda, ACapturedStepFollowsItsSlots) {
  SSM_NEED_CUDA();
  Rng rng(48);
  const int64_t B = 3, E = 72, N = 16;
  const SelectiveScanArgs args = upload(test::selective_scan_case(B, E, N, rng), DType::bf16, rng);
  const Tensor before = test::random_normal({8, N, E}, rng);
  const Tensor captured_state = on_card(before), plain_state = on_card(before);
  const Tensor slots = Tensor::zeros({B}, DType::i32).to(kCuda);
  const SequenceBatch captured_batch = SequenceBatch::steps_on_device(slots);
  Arena arena;  // a captured step may not allocate from the driver
  const ArenaScope scope(&arena);
  Tensor captured = Tensor::empty(args.u.shape(), DType::bf16, kCuda);
  captured = Tensor();
  const Graph graph([&] { captured = selective_scan(args, captured_batch, captured_state); });
  for (const std::vector<int32_t>& use : {std::vector<int32_t>{2, 7, 0}, std::vector<int32_t>{5, 1, 2}}) {
    copy_bytes(slots.raw(), kCuda, use.data(), kCpu, use.size() * sizeof(int32_t));
    graph.replay();
    const Tensor plain = selective_scan(args, SequenceBatch::steps(use), plain_state);
    EXPECT_TRUE(same_bits(captured.to(kCpu), plain.to(kCpu)));
    EXPECT_TRUE(same_bits(captured_state.to(kCpu), plain_state.to(kCpu)));
  }
}

TEST(SelectiveScanCuda, NamesTooManyStates) {
  SSM_NEED_CUDA();
  Rng rng(49);
  const SelectiveScanArgs args = upload(test::selective_scan_case(2, 3, 257, rng), DType::f32, rng);
  EXPECT_THROW(selective_scan(args, SequenceBatch::single(2), {}), Error);
}

}  // namespace
}  // namespace ssm
