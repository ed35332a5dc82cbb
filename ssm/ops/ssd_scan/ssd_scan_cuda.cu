// ssd_scan on a card: which kernels a call takes, how its sequences are cut, and the states between the cuts.
#include <algorithm>
#include <limits>

#include "ssm/ops/ssd_scan/ssd_scan_tiles.cuh"

namespace ssm::cuda {
namespace {

constexpr int kThreads = 256;

// Replaces the segments' end states by their beginnings, one thread V elements of the state. kAhead segments
// are read before the first is overwritten: each step would else wait for memory.
template <int V>
__global__ void __launch_bounds__(kThreads) ssd_scan_state_passing_kernel(const SsdView a, int blocks) {
  constexpr int kAhead = 8;
  grid_dependency_wait();
  let_next_start();
  const int64_t elements = int64_t{a.H} * a.N * a.P;
  const int b = static_cast<int>(blockIdx.x) / blocks;
  const int64_t i = (int64_t{static_cast<int>(blockIdx.x) % blocks} * kThreads + threadIdx.x) * V;
  if (i >= elements) return;
  const int64_t begin = a.batch.offsets[b], length = a.batch.offsets[b + 1] - begin;
  if (length <= a.segment && !a.state_through_segments)
    return;  // a single segment begins where the slot says
  const int64_t first = begin / a.segment + b;
  const int count = static_cast<int>((length + a.segment - 1) / a.segment);
  float* state = a.segment_states + first * elements + i;
  const float* decay = a.segment_decays + first * a.H + i / (int64_t{a.N} * a.P);
  float h[V] = {};
  if (a.state) {
#pragma unroll
    for (int v = 0; v < V; ++v)
      h[v] = load_as_f32(a.state, a.state_dtype, a.batch.slots[b] * elements + i + v);
  }
  for (int k = 0; k < count; k += kAhead) {
    float added[kAhead][V], left[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (k + j + 1 >= count) break;  // the last segment's end is not there
      load<V>(added[j], state + j * elements);
      left[j] = decay[int64_t{j} * a.H];
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (k + j >= count) break;
      store<V>(state + j * elements, h);
      if (k + j + 1 >= count) break;
#pragma unroll
      for (int v = 0; v < V; ++v) h[v] = fmaf(h[v], left[j], added[j][v]);
    }
    state += kAhead * elements, decay += int64_t{kAhead} * a.H;
  }
}

// The state that chunk_scan left in place of a sequence's last segment, to its slot in 16 bits.
__global__ void __launch_bounds__(kThreads) ssd_scan_narrow_state_kernel(const SsdView a) {
  grid_dependency_wait();
  let_next_start();
  const int64_t elements = int64_t{a.H} * a.N * a.P;
  const int64_t per_sequence = (elements + kThreads - 1) / kThreads;
  const int64_t b = blockIdx.x / per_sequence;
  const int64_t i = blockIdx.x % per_sequence * kThreads + threadIdx.x;
  if (i >= elements) return;
  const int64_t begin = a.batch.offsets[b], length = a.batch.offsets[b + 1] - begin;
  const int64_t last = begin / a.segment + b + (length - 1) / a.segment;
  store_from_f32(a.state, a.state_dtype, a.batch.slots[b] * elements + i,
                 a.segment_states[last * elements + i]);
}

void launch_state_passing(const SsdView& a) {
  const int64_t elements = int64_t{a.H} * a.N * a.P;
  const bool vectors = is_multiple(int64_t{a.N} * a.P, 4);
  const int64_t blocks = (elements + kThreads * (vectors ? 4 : 1) - 1) / (kThreads * (vectors ? 4 : 1));
  launch({.grid = dim3(static_cast<unsigned>(a.batch.size * blocks)),
          .block = dim3(kThreads),
          .overlaps_previous = true},
         vectors ? ssd_scan_state_passing_kernel<4> : ssd_scan_state_passing_kernel<1>, a,
         static_cast<int>(blocks));
}

void launch_narrow_state(const SsdView& a) {
  const int64_t elements = int64_t{a.H} * a.N * a.P;
  const int64_t blocks = a.batch.size * ((elements + kThreads - 1) / kThreads);
  launch({.grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kThreads), .overlaps_previous = true},
         ssd_scan_narrow_state_kernel, a);
}

// What cutting costs, in tiles of a block's walk: the part of it that finds an end state, and what writing,
// passing and reading a state adds to a segment.
struct CutCost {
  double ratio, passing;
};

// How long segments are to be, in tiles: cutting fills the card, but what is not a sequence's last segment is
// walked a second time, for its end state.
int64_t segment_tiles(const SequenceBatch& batch, const SsdBlocks& blocks, const CutCost& cut) {
  int64_t longest = 0;
  for (int64_t b = 0; b < batch.size(); ++b) longest = std::max(longest, batch.length(b));
  const int64_t most = (longest + kSsdTile - 1) / kSsdTile;
  int64_t best = most;
  double best_cost = std::numeric_limits<double>::infinity();
  // Lengths in steps of about an eighth, from the longest on: `most` itself means no cut.
  for (int64_t tiles = most; tiles >= 1; tiles -= std::max<int64_t>(1, tiles / 8)) {
    int64_t segments = 0;
    for (int64_t b = 0; b < batch.size(); ++b)
      segments += (batch.length(b) + tiles * kSsdTile - 1) / (tiles * kSsdTile);
    const auto rounds = [&](int64_t n) {
      return static_cast<double>((n * blocks.per_segment + blocks.at_once - 1) / blocks.at_once);
    };
    const double walk = static_cast<double>(tiles) + 0.5;  // half a tile is the start of a block
    double cost = rounds(segments) * walk;
    if (tiles < most) {
      cost += rounds(segments - batch.size()) * walk * cut.ratio +
              cut.passing * std::max(1.0, static_cast<double>(segments * blocks.per_segment) /
                                              static_cast<double>(blocks.at_once));
    }
    if (cost < best_cost) best_cost = cost, best = tiles;
  }
  return best;
}

SsdView view_of_args(const SsdScanArgs& args, const SequenceBatch& batch, const Tensor& state,
                     const Tensor& y) {
  const int64_t H = args.A.size(0);
  return {.x = args.x.raw(),
          .dt = args.dt.raw(),
          .B = args.B.raw(),
          .C = args.C.raw(),
          .A = args.A.data<float>(),
          .D = args.D.defined() ? args.D.data<float>() : nullptr,
          .dt_bias = args.dt_bias.defined() ? args.dt_bias.data<float>() : nullptr,
          .state = state.raw(),
          .y = y.raw(),
          .x_stride = args.x.stride(0),
          .dt_stride = args.dt.stride(0),
          .B_stride = args.B.stride(0),
          .C_stride = args.C.stride(0),
          .y_stride = y.stride(0),
          .H = static_cast<int>(H),
          .P = static_cast<int>(args.x.size(1) / H),
          .G = static_cast<int>(args.groups),
          .N = static_cast<int>(args.B.size(1) / args.groups),
          .D_by_channel = args.D.defined() && args.D.numel() != H,
          .dt_softplus = args.dt_softplus,
          .dt_min = args.dt_min,
          .dt_max = args.dt_max,
          .dtype = args.x.dtype(),
          .state_dtype = state.defined() ? state.dtype() : DType::f32,
          .batch = view_of(batch, args.x.device()),
          .slots = state.defined() ? state.size(0) : 0,
          .segment = 0,
          .segment_states = nullptr,
          .segment_decays = nullptr,
          .state_through_segments = false};
}

}  // namespace

void ssd_scan(const SsdScanArgs& args, const SequenceBatch& batch, const Tensor& state, const Tensor& y) {
  SsdView a = view_of_args(args, batch, state, y);
  if (batch.is_step()) return launch_ssd_step(a);
  const bool groups = takes_ssd_warpgroups(a), matrix = groups || takes_ssd_tiles(a);
  const SsdBlocks blocks = groups   ? ssd_warpgroup_blocks(a)
                           : matrix ? ssd_chunk_scan_blocks(a)
                                    : ssd_recurrence_blocks(a);
  a.segment = kSsdTile * segment_tiles(batch, blocks, matrix ? CutCost{0.4, 2.5} : CutCost{0.6, 0.7});
  int64_t longest = 0;
  for (int64_t b = 0; b < batch.size(); ++b) longest = std::max(longest, batch.length(b));
  const bool cut = longest > a.segment;
  a.state_through_segments = matrix && a.state && a.state_dtype != DType::f32;
  Tensor states, decays;
  if (cut || a.state_through_segments) {
    const int64_t segments = chunk_numbers(a.batch, a.segment);
    states = Tensor::empty({segments, a.H, a.N, a.P}, DType::f32, y.device());
    decays = Tensor::empty({segments, a.H}, DType::f32, y.device());
    a.segment_states = states.data<float>(), a.segment_decays = decays.data<float>();
    if (cut) {
      groups   ? launch_ssd_warpgroup_state(a)
      : matrix ? launch_ssd_chunk_state(a)
               : launch_ssd_recurrence(a, true);
    }
    launch_state_passing(a);
  }
  groups ? launch_ssd_warpgroup_scan(a) : matrix ? launch_ssd_chunk_scan(a) : launch_ssd_recurrence(a, false);
  if (a.state_through_segments) launch_narrow_state(a);
}

}  // namespace ssm::cuda
