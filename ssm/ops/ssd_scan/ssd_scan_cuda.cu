// ssd_scan on a card: which kernels a call takes, how its sequences are cut, and the states between the cuts.
#include <algorithm>
#include <limits>

#include "ssm/ops/ssd_scan/ssd_scan_cuda.cuh"

namespace ssm::cuda {
namespace {

constexpr int kThreads = 256;

// Replaces the segments' end states by their beginnings, one thread an element of the state.
__global__ void __launch_bounds__(kThreads) ssd_scan_state_passing_kernel(const SsdView a) {
  const int64_t elements = int64_t{a.H} * a.N * a.P;
  const int64_t per_sequence = (elements + kThreads - 1) / kThreads;
  const int64_t b = blockIdx.x / per_sequence;
  const int64_t i = blockIdx.x % per_sequence * kThreads + threadIdx.x;
  const int64_t begin = a.batch.offsets[b], length = a.batch.offsets[b + 1] - begin;
  if (i >= elements || length <= a.segment) return;  // a single segment begins where the slot says
  const int64_t first = begin / a.segment + b, count = (length + a.segment - 1) / a.segment;
  const int64_t head = i / (int64_t{a.N} * a.P);
  float* state = a.segment_states + first * elements + i;
  const float* decay = a.segment_decays + first * a.H + head;
  float h = a.state ? load_as_f32(a.state, a.state_dtype, a.batch.slots[b] * elements + i) : 0.0f;
  for (int64_t k = 0; k + 1 < count; ++k) {
    const float added = *state;
    *state = h;
    h = fmaf(h, *decay, added);
    state += elements, decay += a.H;
  }
  *state = h;
}

void launch_state_passing(const SsdView& a) {
  const int64_t elements = int64_t{a.H} * a.N * a.P;
  const int64_t blocks = a.batch.size * ((elements + kThreads - 1) / kThreads);
  launch({.grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kThreads)},
         ssd_scan_state_passing_kernel, a);
}

// How long segments are to be, in tiles: cutting fills the card, but what is not a sequence's last segment is
// walked a second time for its end state, at about `ratio` of the cost, and each launch costs about `launch`
// tiles.
int64_t segment_tiles(const SequenceBatch& batch, const SsdBlocks& blocks, double ratio, double launch) {
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
    // A sequence's tokens take no longer than its blocks; half a tile is the start of a block.
    const double walk = static_cast<double>(tiles) + 0.5;
    double cost = rounds(segments) * walk;
    if (tiles < most) cost += rounds(segments - batch.size()) * walk * ratio + 2 * launch;
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
          .segment = 0,
          .segment_states = nullptr,
          .segment_decays = nullptr};
}

}  // namespace

void ssd_scan(const SsdScanArgs& args, const SequenceBatch& batch, const Tensor& state, const Tensor& y) {
  SsdView a = view_of_args(args, batch, state, y);
  if (batch.is_step()) return launch_ssd_step(a);
  const SsdBlocks blocks = ssd_recurrence_blocks(a);
  a.segment = kSsdTile * segment_tiles(batch, blocks, 0.6, 0.5);
  int64_t longest = 0;
  for (int64_t b = 0; b < batch.size(); ++b) longest = std::max(longest, batch.length(b));
  Tensor states, decays;
  if (longest > a.segment) {
    const int64_t segments = chunk_numbers(a.batch, a.segment);
    states = Tensor::empty({segments, a.H, a.N, a.P}, DType::f32, y.device());
    decays = Tensor::empty({segments, a.H}, DType::f32, y.device());
    a.segment_states = states.data<float>(), a.segment_decays = decays.data<float>();
    launch_ssd_recurrence(a, true);
    launch_state_passing(a);
  }
  launch_ssd_recurrence(a, false);
}

}  // namespace ssm::cuda
