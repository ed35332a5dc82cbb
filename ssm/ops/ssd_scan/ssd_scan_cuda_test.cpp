// ssd_scan on a card against the f64 reference on the rounded operands.
//
// Bounds. In f32, and for single steps, the op's 2e-5 and the rounding of the result. The tensor cores of a
// longer call in 16 bits take rounded factors, each off by at most half a unit in the last place: the masked
// scores and the tile's first state for y, the decayed x for the state. Their products are summed in f32.
// Terms have random signs here, so that the root mean square of the error is below one unit of that of the
// result, and the worst of a million elements, beside a head's own size and not the tensor's, within ten for
// y and five for the state.
#include <numeric>

#include "ssm/core/graph.h"
#include "ssm/ops/cuda/test_cuda.h"
#include "ssm/ops/ssd_scan/ssd_scan_cases.h"
#include "ssm/ops/ssd_scan/ssd_scan_reference.h"

namespace ssm {
namespace {

struct Sizes {
  int64_t H, P, G, N;
};

Sizes random_sizes(Rng& rng) {
  constexpr int64_t kUsual[] = {16, 32, 64, 128, 256};
  const int64_t G = 1 + rng.below(3);
  if (rng.below(2) == 0) return {G * (1 + rng.below(4)), kUsual[rng.below(4)], G, kUsual[rng.below(5)]};
  return {G * (1 + rng.below(3)), 1 + rng.below(rng.below(4) ? 70 : 200), G,
          1 + rng.below(rng.below(8) ? 70 : 300)};
}

int64_t random_length(Rng& rng) {
  if (rng.below(3) == 0) return 1 + rng.below(12);
  if (rng.below(2) == 0) return 1 + rng.below(200);
  return 64 * (1 + rng.below(4)) - 1 + rng.below(3);
}

// The reference on rows [begin, end).
std::vector<double> reference_scan(const SsdScanArgs& args, int64_t begin, int64_t end,
                                   std::vector<double>& state) {
  const auto doubles = [](const Tensor& x) { return x.defined() ? to_doubles(x) : std::vector<double>(); };
  const auto rows = [&](const Tensor& x) { return to_doubles(x.slice(0, begin, end)); };
  reference::SsdScan<double> s;
  s.H = static_cast<size_t>(args.A.size(0)), s.P = static_cast<size_t>(args.x.size(1)) / s.H;
  s.G = static_cast<size_t>(args.groups), s.N = static_cast<size_t>(args.B.size(1)) / s.G;
  s.x = rows(args.x), s.dt = rows(args.dt), s.A = doubles(args.A), s.B = rows(args.B), s.C = rows(args.C);
  s.D = doubles(args.D), s.dt_bias = doubles(args.dt_bias);
  s.dt_softplus = args.dt_softplus, s.dt_min = args.dt_min, s.dt_max = args.dt_max;
  return reference::ssd_scan(s, state);
}

struct Case {
  Sizes size;
  DType dtype, state_dtype = DType::f32;
  SsdScanArgs host, card;  // host: the values the card will see, in f32

  Case(int64_t T, const Sizes& s, DType type, Rng& rng, bool vary = true) : size(s), dtype(type) {
    host = test::ssd_scan_case(T, s.H, s.P, s.G, s.N, rng);
    if (vary) {
      const int64_t d_kind = rng.below(3);
      if (d_kind == 0) host.D = Tensor();
      if (d_kind == 1) host.D = test::random_normal({s.H * s.P}, rng);
      if (rng.below(3) == 0) host.dt_bias = Tensor();
      if (rng.below(3) == 0) host.dt_min = 0.02f, host.dt_max = 0.1f;
      if (rng.below(4) == 0) {
        host.dt_softplus = false;
        for (float& dt : host.dt.values<float>()) dt = 0.01f + 0.01f * dt * dt;
      }
    }
    upload(vary ? rng.below(3) : 0, rng);
  }
  // From host to card: as tensors of their own, or as columns of one wider tensor, where `kind` 1 keeps
  // vectors aligned and 2 does not.
  void upload(int64_t kind, Rng& rng) {
    card = host;
    card.A = on_card(host.A), card.D = on_card(host.D), card.dt_bias = on_card(host.dt_bias);
    Tensor SsdScanArgs::*const rows[] = {&SsdScanArgs::x, &SsdScanArgs::B, &SsdScanArgs::C, &SsdScanArgs::dt};
    for (const auto x : rows) host.*x = rounded(host.*x, dtype), card.*x = on_card(host.*x, dtype);
    if (kind == 0) return;
    const int64_t T = host.x.size(0), gap = kind == 1 ? 8 : 1;
    const auto up = [&](int64_t n) { return (n + gap - 1) / gap * gap; };
    int64_t width = gap;
    for (const auto x : rows) width += up((host.*x).size(1)) + gap;
    const Tensor wide = test::random_normal({T, width}, rng, dtype == DType::f16 ? 1e3f : 1e6f);
    int64_t column = gap;
    std::vector<int64_t> columns;
    for (const auto x : rows) {
      const Tensor& from = host.*x;
      for (int64_t t = 0; t < T; ++t) {
        std::copy_n(from.data<float>() + t * from.size(1), from.size(1),
                    wide.data<float>() + t * width + column);
      }
      columns.push_back(column);
      column += up(from.size(1)) + gap;
    }
    const Tensor there = on_card(wide, dtype);
    for (size_t i = 0; i < 4; ++i)
      card.*rows[i] = there.slice(1, columns[i], columns[i] + (host.*rows[i]).size(1));
  }
  SsdScanArgs tokens(int64_t begin, int64_t end) const {
    SsdScanArgs part = card;
    for (Tensor* x : {&part.x, &part.dt, &part.B, &part.C}) *x = x->slice(0, begin, end);
    return part;
  }
  Tensor random_state(int64_t slots, Rng& rng) const {  // on the host
    return rounded(test::random_normal({slots, size.H, size.N, size.P}, rng), state_dtype);
  }
  double y_bound(bool steps = false) const {
    return 2e-5 + (dtype == DType::f32 ? 0 : (steps ? 1 : 10) * rounding_of(dtype));
  }
  double state_bound(bool steps = false) const {
    return 2e-5 + (dtype == DType::f32 || steps ? 0 : 5 * rounding_of(dtype)) +
           (state_dtype == DType::f32 ? 0 : rounding_of(state_dtype));
  }
  std::string name() const {
    return fmt::format("T {} H {} P {} G {} N {} {} state {} stride {}", host.x.size(0), size.H, size.P,
                       size.G, size.N, name_of(dtype), name_of(state_dtype), card.x.stride(0));
  }
};

// ||a - b|| / ||b||
double norm_error(const Tensor& a, const std::vector<double>& b) {
  const std::vector<double> av = to_doubles(a.to(kCpu));
  double off = 0, all = 1e-60;
  for (size_t i = 0; i < b.size(); ++i) off += (av[i] - b[i]) * (av[i] - b[i]), all += b[i] * b[i];
  return std::sqrt(off / all);
}

// The largest parts of their bounds that any comparison took, so that a run shows them.
struct Worst {
  double y[3] = {}, state[3] = {}, y_norm[3] = {}, state_norm[3] = {};
  ~Worst() {
    for (const DType type : kTypes) {
      const auto i = static_cast<size_t>(std::find(kTypes, kTypes + 3, type) - kTypes);
      if (y[i] == 0) continue;
      fmt::print("  {}: y off by {:.1e} at most, {:.1e} in norm; state {:.1e}, {:.1e}\n", name_of(type), y[i],
                 y_norm[i], state[i], state_norm[i]);
    }
  }
  void take(DType type, double of_y, double of_state) {
    const auto i = static_cast<size_t>(std::find(kTypes, kTypes + 3, type) - kTypes);
    y[i] = std::max(y[i], of_y), state[i] = std::max(state[i], of_state);
  }
  void norm(DType type, double of_y, double of_state) {
    const auto i = static_cast<size_t>(std::find(kTypes, kTypes + 3, type) - kTypes);
    y_norm[i] = std::max(y_norm[i], of_y), state_norm[i] = std::max(state_norm[i], of_state);
  }
};

// Runs `c` as a batch of these lengths in random slots and compares with the reference.
void expect_equal(const Case& c, const std::vector<int64_t>& lengths, Rng& rng, Worst& worst) {
  const auto B = std::ssize(lengths);
  const SequenceBatch batch(lengths, test::slots_in_any_order(B, B + 2, rng));
  const Tensor before = c.random_state(B + 2, rng), state = on_card(before, c.state_dtype);
  const Tensor y = ssd_scan(c.card, batch, state).to(kCpu), after = state.to(kCpu).to(DType::f32);
  std::vector<bool> used(static_cast<size_t>(B + 2));
  for (int64_t b = 0; b < B; ++b) {
    used[static_cast<size_t>(batch.slot(b))] = true;
    std::vector<double> h = to_doubles(before.select(0, batch.slot(b)));
    const std::vector<double> expected = reference_scan(c.host, batch.offset(b), batch.offset(b + 1), h);
    const double y_error = card_error(y.slice(0, batch.offset(b), batch.offset(b + 1)), expected);
    const double state_error = test::relative_error(after.select(0, batch.slot(b)), h);
    EXPECT_LT(y_error, c.y_bound(batch.is_step())) << c.name() << " sequence " << b << " of " << B;
    EXPECT_LT(state_error, c.state_bound(batch.is_step())) << c.name() << " sequence " << b << " of " << B;
    const double y_norm = norm_error(y.slice(0, batch.offset(b), batch.offset(b + 1)), expected);
    const double state_norm = norm_error(after.select(0, batch.slot(b)), h);
    EXPECT_LT(y_norm, 5e-6 + rounding_of(c.dtype)) << c.name();
    EXPECT_LT(state_norm, 5e-6 + rounding_of(c.dtype) + rounding_of(c.state_dtype)) << c.name();
    worst.take(c.dtype, y_error, c.state_dtype == DType::f32 ? state_error : 0);
    worst.norm(c.dtype, y_norm, c.state_dtype == DType::f32 ? state_norm : 0);
  }
  for (int64_t s = 0; s < B + 2; ++s) {
    if (used[static_cast<size_t>(s)]) continue;
    EXPECT_TRUE(same_bits(after.select(0, s), before.select(0, s))) << c.name();
  }
}

TEST(SsdScanCuda, EqualsTheReference) {
  SSM_NEED_CUDA();
  Rng rng(31);
  Worst worst;
  for (int trial = 0; trial < 300; ++trial) {
    const Sizes size = random_sizes(rng);
    const int64_t T = random_length(rng);
    Case c(T, size, kTypes[trial % 3], rng);
    if (rng.below(3) == 0) c.state_dtype = kTypes[rng.below(3)];
    expect_equal(c, {T}, rng, worst);
  }
}

// Heads of whole 64 channels have kernels of their own on Hopper.
TEST(SsdScanCuda, WholeWarpGroupsEqualTheReference) {
  SSM_NEED_CUDA();
  Rng rng(40);
  Worst worst;
  for (int trial = 0; trial < 120; ++trial) {
    const int64_t G = 1 + rng.below(3), P = rng.below(4) ? 64 : 64 * (1 + rng.below(3));
    const Sizes size{G * (1 + rng.below(5)), P, G, rng.below(3) ? 128 : 64};
    std::vector<int64_t> lengths(static_cast<size_t>(1 + rng.below(3)));
    for (int64_t& n : lengths) n = trial % 10 == 0 ? 1500 + rng.below(200) : random_length(rng);
    Case c(std::accumulate(lengths.begin(), lengths.end(), int64_t{0}), size, kTypes[1 + trial % 2], rng);
    if (rng.below(4) == 0) c.state_dtype = kTypes[rng.below(3)];
    expect_equal(c, lengths, rng, worst);
  }
}

TEST(SsdScanCuda, RaggedBatchesEqualTheReference) {
  SSM_NEED_CUDA();
  Rng rng(32);
  Worst worst;
  for (int trial = 0; trial < 90; ++trial) {
    std::vector<int64_t> lengths(static_cast<size_t>(trial % 10 == 0 ? 40 : 1 + rng.below(7)));
    for (int64_t& n : lengths) n = trial % 5 == 0 ? 1 + rng.below(2) : random_length(rng);
    const Sizes size = random_sizes(rng);
    Case c(std::accumulate(lengths.begin(), lengths.end(), int64_t{0}), size, kTypes[trial % 3], rng);
    expect_equal(c, lengths, rng, worst);
  }
}

TEST(SsdScanCuda, StepsEqualTheReference) {
  SSM_NEED_CUDA();
  Rng rng(33);
  Worst worst;
  for (int trial = 0; trial < 150; ++trial) {
    const int64_t B = rng.below(3) ? 1 + rng.below(4) : 1 + rng.below(20);
    Case c(B, random_sizes(rng), kTypes[trial % 3], rng);
    c.state_dtype = kTypes[rng.below(3)];
    expect_equal(c, std::vector<int64_t>(static_cast<size_t>(B), 1), rng, worst);
  }
}

TEST(SsdScanCuda, AnAbsentStateIsZeros) {
  SSM_NEED_CUDA();
  Rng rng(34);
  for (int trial = 0; trial < 60; ++trial) {
    const std::vector<int64_t> lengths = trial % 4 == 0
                                             ? std::vector<int64_t>{1, 1}
                                             : std::vector<int64_t>{random_length(rng), 1 + rng.below(3)};
    const SequenceBatch batch(lengths, std::vector<int32_t>{4, 2});
    const Case c(batch.total(), random_sizes(rng), kTypes[trial % 3], rng);
    const Tensor zeros = Tensor::zeros({5, c.size.H, c.size.N, c.size.P}, DType::f32, kCuda);
    EXPECT_TRUE(
        same_bits(ssd_scan(c.card, batch, Tensor()).to(kCpu), ssd_scan(c.card, batch, zeros).to(kCpu)))
        << c.name();
  }
}

// A text cut anywhere, single tokens among the pieces, stays within the bounds of the whole.
TEST(SsdScanCuda, AnySplitAgrees) {
  SSM_NEED_CUDA();
  Rng rng(35);
  Worst worst;
  for (int trial = 0; trial < 60; ++trial) {
    const int64_t T = random_length(rng);
    const Case c(T, random_sizes(rng), kTypes[trial % 3], rng);
    const Tensor before = c.random_state(1, rng), state = on_card(before);
    const Tensor y = Tensor::empty({T, c.size.H * c.size.P});
    for (int64_t begin = 0; begin < T;) {
      const int64_t end = std::min(T, begin + (rng.below(3) ? 1 + rng.below(100) : 1));
      const Tensor part =
          ssd_scan(c.tokens(begin, end), SequenceBatch::single(end - begin), state).to(kCpu).to(DType::f32);
      std::copy_n(part.data<float>(), part.numel(), y.data<float>() + begin * y.size(1));
      begin = end;
    }
    std::vector<double> h = to_doubles(before);
    const std::vector<double> expected = reference_scan(c.host, 0, T, h);
    const double y_error = test::relative_error(y, expected), state_error = card_error(state, h);
    EXPECT_LT(y_error, c.y_bound()) << c.name();
    EXPECT_LT(state_error, c.state_bound()) << c.name();
    worst.take(c.dtype, y_error, state_error);
  }
}

// Alone or in a batch: cuts fall elsewhere, and results agree within the bound.
TEST(SsdScanCuda, ARaggedBatchAgreesWithSingleRuns) {
  SSM_NEED_CUDA();
  Rng rng(36);
  for (int trial = 0; trial < 30; ++trial) {
    std::vector<int64_t> lengths(static_cast<size_t>(2 + rng.below(5)));
    for (int64_t& n : lengths) n = 1 + rng.below(trial % 3 == 0 ? 2000 : 300);
    const SequenceBatch batch = SequenceBatch::in_order(lengths);
    const Case c(batch.total(), random_sizes(rng), kTypes[trial % 3], rng);
    const Tensor before = c.random_state(batch.size(), rng), state = on_card(before), alone = on_card(before);
    const Tensor y = ssd_scan(c.card, batch, state).to(kCpu);
    for (int64_t b = 0; b < batch.size(); ++b) {
      const Tensor single = ssd_scan(c.tokens(batch.offset(b), batch.offset(b + 1)),
                                     SequenceBatch::single(batch.length(b), batch.slot(b)), alone);
      EXPECT_LT(card_error(single, to_doubles(y.slice(0, batch.offset(b), batch.offset(b + 1)))), c.y_bound())
          << c.name();
    }
    EXPECT_LT(card_error(alone, to_doubles(state.to(kCpu))), c.state_bound()) << c.name();
  }
}

TEST(SsdScanCuda, LongSequences) {
  SSM_NEED_CUDA();
  Rng rng(37);
  Worst worst;
  for (const int64_t T : {int64_t{63}, int64_t{64}, int64_t{65}, int64_t{65537}, int64_t{1048577}}) {
    for (const DType type : kTypes) {
      Case c(T, T < 100000 ? Sizes{4, 16, 2, 8} : Sizes{2, 4, 1, 3}, type, rng);
      expect_equal(c, {T}, rng, worst);
    }
  }
}

// Strong decay over a long time, steps so large that exp underflows in one, and memories of a million tokens.
TEST(SsdScanCuda, ExtremesStayAccurate) {
  SSM_NEED_CUDA();
  Rng rng(38);
  Worst worst;
  for (int trial = 0; trial < 24; ++trial) {
    const DType type = kTypes[trial % 3];
    const Sizes size = trial % 2 ? Sizes{4, 64, 2, 32} : Sizes{3, 16, 1, 8};
    Case c(20 * 64 + 5, size, type, rng);
    const int64_t extreme = trial / 3 % 4;
    // What a 16-bit float of 5 bits of exponent cannot hold, its matrix products cannot either.
    const float huge = type == DType::f16 ? 300.0f : 3e4f;
    for (float& dt : c.host.dt.values<float>()) {
      const int64_t kind = rng.below(8);
      if (extreme == 0)
        dt = kind == 0 ? 80.0f : kind == 1 ? -100.0f : kind == 2 ? 5.0f : kind == 3 ? huge : dt;
      if (extreme == 1) dt = -14.0f;
      if (extreme == 2) dt = kind == 0 ? huge : -7.0f;
      if (extreme == 3) dt = 20.0f;
    }
    c.host.dt_softplus = true, c.host.dt_min = 0, c.host.dt_max = std::numeric_limits<float>::infinity();
    c.upload(trial % 3, rng);
    expect_equal(c, {20 * 64 + 5}, rng, worst);
  }
}

// A captured step takes its slots from the card: replayed with others, it updates others.
TEST(SsdScanCuda, ACapturedStepReadsItsSlots) {
  SSM_NEED_CUDA();
  Rng rng(39);
  Arena arena;
  const int64_t B = 3;
  const Case c(B, {4, 64, 1, 32}, DType::bf16, rng, false);
  const Tensor before = c.random_state(6, rng), state = on_card(before);
  const Tensor slots = Tensor::from_values<int32_t>(std::vector<int32_t>{0, 1, 2}, {B}).to(kCuda);
  const SequenceBatch batch = SequenceBatch::steps_on_device(slots);
  Tensor y;
  {
    const ArenaScope scope(&arena);
    ssd_scan(c.card, batch, Tensor());  // so that the arena has the memory
  }
  const Graph graph([&] {
    const ArenaScope scope(&arena);
    y = ssd_scan(c.card, batch, state);
  });
  const Tensor others = Tensor::from_values<int32_t>(std::vector<int32_t>{5, 3, 4}, {B});
  copy_bytes(slots.raw(), kCuda, others.raw(), kCpu, others.bytes());
  graph.replay();
  const Tensor result = y.to(kCpu), after = state.to(kCpu);
  for (int64_t b = 0; b < B; ++b) {
    const int64_t slot = others.values<int32_t>()[static_cast<size_t>(b)];
    std::vector<double> h = to_doubles(before.select(0, slot));
    const std::vector<double> expected = reference_scan(c.host, b, b + 1, h);
    EXPECT_LT(card_error(result.slice(0, b, b + 1), expected), c.y_bound(true));
    EXPECT_LT(test::relative_error(after.select(0, slot), h), c.state_bound(true));
    EXPECT_TRUE(same_bits(after.select(0, b), before.select(0, b)));
  }
}

}  // namespace
}  // namespace ssm
