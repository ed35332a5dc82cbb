// linear_streamed.cuh has the kernel; here is which blocks a product gets.
#include "ssm/ops/linear/linear_streamed.cuh"

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "ssm/core/launch.cuh"
#include "ssm/ops/linear/linear_cuda.h"

namespace ssm::cuda {
namespace {

// How many clusters of whole blocks the card holds.
int room_for(unsigned cluster) {
  using S = StreamedShared<80, 1>;
  const auto kernel = linear_streamed_kernel<__nv_bfloat16, 80, 1, 1>;
  allow_shared_bytes(kernel, kMostBytes);
  return most_clusters(
      {.grid = dim3(1 << 10), .block = dim3(S::kThreads), .shared_bytes = kMostBytes, .cluster = cluster},
      kernel);
}

// What one kernel multiplies; where a second product is there, its blocks are beside the first's or its K
// goes on after the first's.
struct Work {
  LinearOperands first, second = {};
  bool beside = false;

  bool is_pair() const { return defined(second.weight); }
  bool is_beside() const { return is_pair() && beside; }
  bool is_after() const { return is_pair() && !beside; }
  static int64_t steps_of(const LinearOperands& p) {
    return (dense(p).size(1) + kTileColumns - 1) / kTileColumns;
  }
  static const Tensor& dense(const LinearOperands& p) { return std::get<Tensor>(p.weight); }
};

struct Way {
  int columns = 0, parts = 1;
};

bool can_stream(const LinearOperands& p, DType dtype) {
  if (is_packed(p.weight)) return false;
  const Tensor& w = Work::dense(p);
  const int64_t N = w.size(0), K = w.size(1);
  return w.dtype() == dtype && in_packs(w) && N % 8 == 0 && N > 0 && K > 0 && N < (1 << 30) &&
         K < (1 << 30) && (!p.x.defined() || (p.x.dtype() == dtype && in_packs(p.x))) &&
         (!p.bias.defined() || (p.bias.dtype() == DType::f32 && is_aligned(p.bias.raw())));
}

constexpr int64_t kFewRows = 64;  // of one warp group; two products have no more
constexpr int kMostAlone = 96;    // columns of a block of one product

// The way whose fullest block has the least to read; none where a product cannot be streamed, or W is too
// much for the card to hold its blocks at once. x may be undefined: aligned, then.
std::optional<Way> way_of(const Work& work, int64_t T) {
  if (!has_streamed_products() || T > kMostRows || is_packed(work.first.weight)) return {};
  const DType dtype = Work::dense(work.first).dtype();
  if (dtype == DType::f32 || !can_stream(work.first, dtype) || (work.is_pair() && T > kFewRows) ||
      (work.is_pair() && !can_stream(work.second, dtype))) {
    return {};
  }
  static const std::map<int, int> room{{1, room_for(kSharing)}, {4, room_for(4)}, {8, room_for(8)}};
  const bool beside = work.is_beside();
  const int64_t first_steps = Work::steps_of(work.first),
                second_steps = work.is_pair() ? Work::steps_of(work.second) : 0,
                steps = work.is_after() ? first_steps + second_steps : std::max(first_steps, second_steps),
                least_steps = beside ? std::min(first_steps, second_steps) : steps;
  std::optional<Way> best;
  int64_t least = 0;
  for (const int columns : {32, 48, 64, 80, 96, 112, 144}) {
    if (columns > kMostAlone && !beside) continue;
    for (const auto& [parts, most] : room) {
      const auto clusters_of = [&, parts = parts](const LinearOperands& p) {
        const int64_t tiles = (Work::dense(p).size(0) + columns - 1) / columns;
        return parts > 1 ? tiles : (tiles + 1) / kSharing;
      };
      if (clusters_of(work.first) + (beside ? clusters_of(work.second) : 0) > most || least_steps < parts)
        continue;
      // x comes from L2, in a quarter of the time and less where it is shared; to add up costs some steps.
      constexpr int64_t kToAddUp = 400;
      const int64_t cost = (steps + parts - 1) / parts * (4 * columns + (parts > 1 ? T : T / kSharing)) +
                           (parts > 1 ? kToAddUp : 0);
      if (!best || cost < least) best = Way{columns, parts}, least = cost;
    }
  }
  return best;
}

template <class X, int kColumns, int kGroups, int kProducts>
void launch_way(const Way& way, const Work& work, StreamedArgs<kProducts> a) {
  using S = StreamedShared<kColumns, kGroups>;
  const auto kernel = linear_streamed_kernel<X, kColumns, kGroups, kProducts>;
  [[maybe_unused]] static const bool allowed =
      allow_shared_bytes(kernel, kMostBytes) && prefer_shared(kernel);
  a.parts = way.parts;
  a.sharing = way.parts > 1 ? 1 : kSharing;
  const auto blocks_of = [&](int N) {
    const int tiles = (N + kColumns - 1) / kColumns;
    return way.parts > 1 ? tiles * way.parts : (tiles + 1) / kSharing * kSharing;
  };
  int blocks = blocks_of(a.of[0].N), most_steps = a.of[0].steps;
  if (work.is_beside()) {
    a.first_tiles = blocks / way.parts;
    blocks += blocks_of(a.of[kProducts - 1].N);
    most_steps = std::max(most_steps, a.of[kProducts - 1].steps);
  }
  constexpr int kFewStages = 5;  // so that the next kernel's blocks fit beside it
  a.is_small = 2 * blocks <= properties().multiprocessors;
  const int steps = (most_steps + way.parts - 1) / way.parts;
  a.stages = std::min({S::kStages, steps, a.is_small ? kFewStages : S::kStages});
  for (int i = 0; i < kProducts; ++i) {
    const LinearOperands& p = i == 0 ? work.first : work.second;
    a.x[i] = tile_map(p.x, S::kRows / a.sharing);
    a.w[i] = tile_map(Work::dense(p), kColumns);
  }
  launch({.grid = dim3(static_cast<unsigned>(blocks)),
          .block = dim3(S::kThreads),
          .shared_bytes = static_cast<size_t>(S::bytes(a.stages)),
          .overlaps_previous = true,
          .cluster = static_cast<unsigned>(a.parts * a.sharing)},
         kernel, a);
}

template <class X, int kProducts>
void launch_streamed(const Way& way, const Work& work, const StreamedArgs<kProducts>& a) {
  const auto with = [&](auto columns) {
    if constexpr (kProducts == 1 && columns.value <= kMostAlone) {
      if (a.T > kFewRows) return launch_way<X, columns.value, 2>(way, work, a);
    }
    if constexpr (kProducts > 1 || columns.value <= kMostAlone) launch_way<X, columns.value, 1>(way, work, a);
  };
  switch (way.columns) {
    case 32:
      return with(std::integral_constant<int, 32>{});
    case 48:
      return with(std::integral_constant<int, 48>{});
    case 64:
      return with(std::integral_constant<int, 64>{});
    case 80:
      return with(std::integral_constant<int, 80>{});
    case 96:
      return with(std::integral_constant<int, 96>{});
    case 112:
      return with(std::integral_constant<int, 112>{});
    default:
      return with(std::integral_constant<int, 144>{});
  }
}

StreamedResult result_of(const LinearOperands& p, const Tensor& y) {
  return {.bias = p.bias.defined() ? p.bias.data<float>() : nullptr,
          .y = const_cast<std::byte*>(y.raw()),
          .y_stride = y.stride(0),
          .N = static_cast<int>(Work::dense(p).size(0)),
          .steps = static_cast<int>(Work::steps_of(p)),
          .gelu = false};
}

struct Results {
  Tensor y;
  bool adds = false;
  Tensor second_y = {};  // of a second product beside the first: gelu of it
  StreamedScale scale = {};
  StreamedNorm next = {};
};

template <int kProducts>
void launch_products(const Way& way, const Work& work, const Results& results) {
  constexpr int kNone = std::numeric_limits<int>::max();
  const auto& [y, adds, second_y, scale, next] = results;
  StreamedArgs<kProducts> a{.x = {},
                            .w = {},
                            .of = {result_of(work.first, y)},
                            .more_bias = nullptr,
                            .first_tiles = kNone,
                            .first_steps = kNone,
                            .T = static_cast<int>(y.size(0)),
                            .parts = 1,
                            .sharing = 1,
                            .stages = 0,
                            .y_is_f32 = y.dtype() == DType::f32,
                            .adds = adds,
                            .is_small = false,
                            .scale = scale,
                            .next = next};
  if (work.is_beside()) {
    a.of[kProducts - 1] = result_of(work.second, second_y);
    a.of[kProducts - 1].gelu = true;
  } else if (work.is_after()) {
    const StreamedResult more = result_of(work.second, y);
    a.first_steps = std::exchange(a.of[0].steps, a.of[0].steps + more.steps);
    a.more_bias = more.bias;
  }
  work.first.x.dtype() == DType::bf16 ? launch_streamed<__nv_bfloat16>(way, work, a)
                                      : launch_streamed<__half>(way, work, a);
}

bool streamed(const Work& work, const Results& results) {
  const std::optional<Way> way = way_of(work, results.y.size(0));
  if (!way || !in_packs(results.y) || (work.is_beside() && !in_packs(results.second_y))) return false;
  work.is_pair() ? launch_products<2>(*way, work, results) : launch_products<1>(*way, work, results);
  return true;
}

}  // namespace

bool has_streamed_products() {
#ifdef SSM_WARPGROUPS
  return properties().major == 9;
#else
  return false;
#endif
}

bool linear_streamed(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& y) {
  return streamed({.first = {x, w, bias}}, {.y = y});
}

bool linear_add_streamed(const Tensor& x, const Tensor& w, const Tensor& bias, const Tensor& residual) {
  return streamed({.first = {x, w, bias}}, {.y = residual, .adds = true});
}

bool can_stream(int64_t T, const Tensor& w) { return way_of({.first = {{}, w, {}}}, T).has_value(); }

UndividedNorm linear_add_norm(const LinearOperands& p, const Tensor& residual, const Tensor& norm_weight,
                              float eps) {
  const std::optional<Way> way = way_of({.first = p}, residual.size(0));
  SSM_CHECK(way && is_aligned(norm_weight.raw()), "linear_add_norm: an operand is not aligned");
  const int64_t tiles = (residual.size(1) + way->columns - 1) / way->columns, count = (tiles + 3) / 4 * 4;
  const UndividedNorm left{.x = Tensor::empty(residual.shape(), p.x.dtype(), residual.device()),
                           .squares = Tensor::empty({residual.size(0), count}, DType::f32, residual.device()),
                           .eps = eps};
  const StreamedNorm next{.weight = norm_weight.data<float>(),
                          .x = left.x.raw(),
                          .squares = left.squares.data<float>(),
                          .x_stride = left.x.stride(0),
                          .count = static_cast<int>(count)};
  SSM_CHECK(streamed({.first = p}, {.y = residual, .adds = true, .next = next}),
            "linear_add_norm: the residual is not aligned");
  return left;
}

void linear_of_norm(const UndividedNorm& x, const Tensor& w, const Tensor& bias, const Tensor& y) {
  const StreamedScale scale{.squares = x.squares.data<float>(),
                            .count = static_cast<int>(x.squares.size(1)),
                            .inverse_width = 1.0f / static_cast<float>(x.x.size(1)),
                            .eps = x.eps};
  SSM_CHECK(streamed({.first = {x.x, w, bias}}, {.y = y, .scale = scale}),
            "linear_of_norm: an operand is not aligned");
}

bool has_linear_beside(const LinearOperands& first, const LinearOperands& second) {
  const int64_t T = first.x.size(0);
  return T > kStepRows && way_of({first, second, true}, T).has_value();
}

void linear_beside(const LinearOperands& first, const LinearOperands& second, const Tensor& y1,
                   const Tensor& y2) {
  SSM_CHECK(streamed({first, second, true}, {.y = y1, .second_y = y2}),
            "linear_beside: the results are not aligned");
}

bool has_linear_add_both(const LinearOperands& first, const LinearOperands& second) {
  const int64_t T = first.x.size(0);
  return T > kStepRows && way_of({first, second, false}, T).has_value();
}

void linear_add_both(const LinearOperands& first, const LinearOperands& second, const Tensor& residual) {
  SSM_CHECK(streamed({first, second, false}, {.y = residual, .adds = true}),
            "linear_add_both: the residual is not aligned");
}

}  // namespace ssm::cuda
