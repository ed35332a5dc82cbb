// chunk_state on the tensor cores: the state a segment leaves behind, had it begun at zero.
#include <algorithm>

#include "ssm/ops/ssd_scan/ssd_scan_tiles.cuh"

namespace ssm::cuda {
namespace {

template <int kN, int W>
struct Layout {
  static constexpr int kB = 0, kX = kB + kSsdTile * kN * 2, kStage = kX + kSsdTile * 16 * W * 2;
  static constexpr int kStages = 3, kFactors = kStages * kStage;
  static int bytes(int heads) { return kFactors + 2 * heads * static_cast<int>(sizeof(SsdFactors)); }
};

// One block a segment and W units of channels. Segments at the end of their sequences are left out: their end
// states come from chunk_scan.
template <class X, int kN, int W>
__global__ void __launch_bounds__(32 * W, 2) ssd_scan_chunk_state_kernel(const SsdView a, bool vectors) {
  using L = Layout<kN, W>;
  extern __shared__ __align__(1024) unsigned char shared[];
  grid_dependency_wait();
  let_next_start();
  const SsdUnits<W> units(a);
  const int blocks = units.blocks_per_group * a.G;
  const int64_t number = blockIdx.x / blocks;
  const Chunk segment = chunk_of(a.batch, number, a.segment);
  if (segment.sequence < 0 || ends_of(a, segment).last) return;
  const SsdChannels<W> channels(a, units, static_cast<int>(blockIdx.x % blocks));
  SsdChannelSource<W, X> x(a, units, channels);
  SsdStateSource<kN, X> B(a, a.B, channels.group);
  x.from += segment.begin * a.x_stride, B.from += segment.begin * a.B_stride;
  SsdFactors* const factors = reinterpret_cast<SsdFactors*>(shared + L::kFactors);

  const int length = static_cast<int>(segment.end - segment.begin);
  const auto load = [&](int first, int stage) {
    unsigned char* const to = shared + stage * L::kStage;
    const int rows = max(0, min(kSsdTile, length - first));
    if (rows == 0) return commit_copies();
    load_tile<W, kN>(to + L::kB, B.from + first * a.B_stride, a.B_stride, rows, B.columns, vectors);
    load_tile<W, 16 * W>(to + L::kX, x.from + first * a.x_stride, a.x_stride, rows, x.columns, vectors);
    commit_copies();  // also of nothing, so that the groups count the tiles
  };
  SsdFactorMaker<X> maker(a, segment.begin, channels.first_head, channels.heads);
  load(0, 0);
  maker.fetch(a, 0, length);
  load(kSsdTile, 1);
  maker.make(a, factors);
  if (kSsdTile < length) maker.fetch(a, kSsdTile, length);
  float h[kN / 8][4] = {};
  float decay = 1.0f;
  const int own = channels.head - channels.first_head;
  int stage = 0, turn = 0;
  for (int first = 0; first < length; first += kSsdTile, stage = stage == 2 ? 0 : stage + 1, turn ^= 1) {
    const int next = first + kSsdTile;
    wait_for_copies<1>();
    __syncthreads();
    load(next + kSsdTile, stage == 0 ? 2 : stage - 1);
    if (next < length) {
      maker.make(a, factors + (turn ^ 1) * channels.heads);
      if (next + kSsdTile < length) maker.fetch(a, next + kSsdTile, length);
    }
    const SsdFactors& f = factors[turn * channels.heads + own];
    const uint32_t tiles = shared_address(shared + stage * L::kStage);
    if (channels.p_count > 0) update_state<X, kN, W>(h, f, tiles + L::kX, tiles + L::kB);
    decay *= f.decay;
  }

  float* const to = a.segment_states + (number * a.H + channels.head) * (int64_t{a.N} * a.P);
  for_each_of_state<kN, W>(h, a, channels, [&](float& v, int64_t at) { to[at] = v; });
  if (channels.p_count > 0 && channels.p_begin == 0 && threadIdx.x % 32 == 0)
    a.segment_decays[number * a.H + channels.head] = decay;
}

template <class X, int kN, int W>
void launch_as(const SsdView& a, bool vectors) {
  const SsdUnits<W> units(a);
  const auto kernel = ssd_scan_chunk_state_kernel<X, kN, W>;
  static const bool allowed = allow_shared_bytes(
      kernel, std::min(Layout<kN, W>::bytes(kSsdMostHeads), properties().max_shared_bytes));
  static_cast<void>(allowed);
  const auto blocks = static_cast<unsigned>(chunk_numbers(a.batch, a.segment) * units.blocks_per_group * a.G);
  launch({.grid = dim3(blocks),
          .block = dim3(32 * W),
          .shared_bytes = static_cast<size_t>(Layout<kN, W>::bytes(units.most_heads())),
          .overlaps_previous = true},
         kernel, a, vectors);
}

}  // namespace

void launch_ssd_chunk_state(const SsdView& a) {
  dispatch_ssd_tiles(a, [&](auto x_zero, auto n, auto w) {
    launch_as<decltype(x_zero), n.value, w.value>(a, has_aligned_vectors(a));
  });
}

}  // namespace ssm::cuda
