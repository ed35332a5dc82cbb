// chunk_state on the tensor cores: the state a segment leaves behind, had it begun at zero.
#include "ssm/ops/ssd_scan/ssd_scan_tiles.cuh"

namespace ssm::cuda {
namespace {

template <int kN, int M>
struct Layout {
  static constexpr int kB = 0, kX = kB + kSsdTile * kN * 2, kStage = kX + kSsdTile * 64 * M * 2;
  static constexpr int kStages = 2, kFactors = kStages * kStage;
  static int bytes(int heads) { return kFactors + 2 * heads * static_cast<int>(sizeof(SsdFactors)); }
};

// One block a segment and four units of channels. Segments at the end of their sequences are left out: their end
// states come from chunk_scan.
template <class X, int kN, int M>
__global__ void __launch_bounds__(kSsdThreads) ssd_scan_chunk_state_kernel(const SsdView a, bool vectors) {
  using L = Layout<kN, M>;
  extern __shared__ __align__(128) unsigned char shared[];
  const SsdUnits<M> units(a);
  const int blocks = units.blocks_per_group * a.G;
  const int64_t number = blockIdx.x / blocks;
  const Chunk segment = chunk_of(a.batch, number, a.segment);
  if (segment.sequence < 0 || ends_of(a, segment).last) return;
  const SsdChannels<M> channels(a, units, static_cast<int>(blockIdx.x % blocks));
  const SsdChannelSource<M, X> x(a, units, channels);
  const SsdStateSource<kN, X> B(a, a.B, channels.group);
  SsdFactors* const factors = reinterpret_cast<SsdFactors*>(shared + L::kFactors);

  const auto load = [&](int64_t begin, int stage) {
    unsigned char* const to = shared + stage * L::kStage;
    const int rows = static_cast<int>(min(int64_t{kSsdTile}, segment.end - begin));
    load_tile<kN>(to + L::kB, B.from + begin * a.B_stride, a.B_stride, rows, B.columns, vectors);
    load_tile<64 * M>(to + L::kX, x.from + begin * a.x_stride, a.x_stride, rows, x.columns, vectors);
    commit_copies();
  };
  SsdFactorMaker<X> maker(a, channels.first_head, channels.heads);
  load(segment.begin, 0);
  maker.fetch(a, segment.begin, segment.end - segment.begin);
  maker.make(a, factors);
  float h[M][kN / 8][4] = {};
  float decay = 1.0f;
  const int own = channels.head - channels.first_head;
  int stage = 0;
  for (int64_t begin = segment.begin; begin < segment.end; begin += kSsdTile, stage ^= 1) {
    const int64_t next = begin + kSsdTile;
    wait_for_copies<0>();
    __syncthreads();
    if (next < segment.end) {
      load(next, stage ^ 1);
      maker.fetch(a, next, segment.end - next);
    }
    const SsdFactors& f = factors[stage * channels.heads + own];
    const uint32_t tiles = shared_address(shared + stage * L::kStage);
    if (channels.p_count > 0) update_state<X, kN, M>(h, f, tiles + L::kX, tiles + L::kB);
    decay *= f.decay;
    if (next < segment.end) maker.make(a, factors + (stage ^ 1) * channels.heads);
  }

  float* const to =
      a.segment_states + (number * a.H + channels.head) * (int64_t{a.N} * a.P);
  for_each_of_state<kN, M>(h, a, channels, [&](float& v, int64_t at) { to[at] = v; });
  if (channels.p_count > 0 && channels.p_begin == 0 && threadIdx.x % 32 == 0)
    a.segment_decays[number * a.H + channels.head] = decay;
}

template <class X, int kN, int M>
void launch_as(const SsdView& a, bool vectors) {
  const SsdUnits<M> units(a);
  const auto kernel = ssd_scan_chunk_state_kernel<X, kN, M>;
  static const bool allowed = allow_shared_bytes(kernel, Layout<kN, M>::bytes(kSsdMostHeads));
  static_cast<void>(allowed);
  const auto blocks =
      static_cast<unsigned>(chunk_numbers(a.batch, a.segment) * units.blocks_per_group * a.G);
  launch({.grid = dim3(blocks),
          .block = dim3(kSsdThreads),
          .shared_bytes = static_cast<size_t>(Layout<kN, M>::bytes(units.most_heads()))},
         kernel, a, vectors);
}

}  // namespace

void launch_ssd_chunk_state(const SsdView& a) {
  dispatch_ssd_tiles(a, [&](auto x_zero, auto n, auto m) {
    launch_as<decltype(x_zero), n.value, m.value>(a, has_aligned_vectors(a));
  });
}

}  // namespace ssm::cuda
