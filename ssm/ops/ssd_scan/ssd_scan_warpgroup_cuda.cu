// chunk_state and chunk_scan with the tensor cores of warp groups (Hopper): heads of whole 64 channels, N of
// 64 or 128, 16-byte accesses aligned. How a block works stands in ssd_scan_warpgroup.cuh.
#include "ssm/ops/ssd_scan/ssd_scan_warpgroup.cuh"

namespace ssm::cuda {
namespace {

using namespace ssd_warpgroup;

// One block a segment and two units. The state pass leaves out segments at the end of their sequences: their
// end states come from the other.
template <class X, int kN, Pass kPass>
__global__ void __launch_bounds__(Layout<kN, kPass>::kThreads, 1)
    ssd_scan_warpgroup_kernel(const __grid_constant__ SsdView a) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using L = Layout<kN, kPass>;
  extern __shared__ __align__(1024) unsigned char shared[];
  grid_dependency_wait();
  let_next_start();
  const Piece piece(a);
  if (piece.segment.sequence < 0 || (kPass == Pass::state && ends_of(a, piece.segment).last)) return;
  constexpr int kWarps = kGroup / 32;
  const uint32_t base = shared_address(shared);
  if (threadIdx.x < L::kStages) {
    init_barrier(base + L::kFull + threadIdx.x * 8, kCopyWarps + piece.heads());
    init_barrier(base + L::kEmpty + threadIdx.x * 8, piece.count * (L::kScan ? 2 : 1) * kWarps);
  }
  if (threadIdx.x < kUnits) {
    init_barrier(base + L::kReady + threadIdx.x * 8, kWarps);
    init_barrier(base + L::kUsed + threadIdx.x * 8, kWarps);
  }
  __syncthreads();
  const int trade = static_cast<int>(threadIdx.x) / kGroup, unit = (trade - 1) % kUnits;
  if (trade == 0) {
    give_registers<L::kOfProducer>();
    constexpr int kOthers = kGroup - 32 * kCopyWarps;
    if (threadIdx.x < kOthers) {
      make_factors<X, kN, kPass>(a, piece, shared);
    } else {
      copy_tiles<X, kN, kPass>(a, piece, base, static_cast<int>(threadIdx.x) - kOthers);
    }
  } else if (trade <= kUnits) {
    take_registers<L::kOfKeeper>();
    if (unit >= piece.count) return;
    Keeper<X, kN, kPass> keeper(a, piece, shared, unit);
    if constexpr (L::kScan) {
      keeper.scan();
    } else {
      keeper.find_state();
    }
  } else if constexpr (L::kScan) {
    take_registers<L::kOfWriter>();
    if (unit >= piece.count) return;
    Writer<X, kN>(a, piece, shared, unit).scan();
  }
#endif
}

template <Pass kPass>
void launch_pass(const SsdView& a) {
  const auto with = [&](auto x_zero, auto n) {
    using L = Layout<n.value, kPass>;
    const auto kernel = ssd_scan_warpgroup_kernel<decltype(x_zero), n.value, kPass>;
    static const bool allowed = allow_shared_bytes(kernel, L::kBytes);
    static_cast<void>(allowed);
    const int64_t blocks = chunk_numbers(a.batch, a.segment) * ssd_warpgroup_blocks(a).per_segment;
    launch({.grid = dim3(static_cast<unsigned>(blocks)),
            .block = dim3(L::kThreads),
            .shared_bytes = L::kBytes,
            .overlaps_previous = true},
           kernel, a);
  };
  const auto with_states = [&](auto x_zero) {
    a.N == 64 ? with(x_zero, std::integral_constant<int, 64>{})
              : with(x_zero, std::integral_constant<int, 128>{});
  };
  a.dtype == DType::bf16 ? with_states(__nv_bfloat16{}) : with_states(__half{});
}

}  // namespace

bool takes_ssd_warpgroups(const SsdView& a) {
#ifdef SSM_WARPGROUPS
  return properties().major == 9 && a.dtype != DType::f32 && a.dt_min >= 0 && (a.N == 64 || a.N == 128) &&
         is_multiple(a.P, kUnitWidth) && has_aligned_vectors(a);
#else
  static_cast<void>(a);
  return false;
#endif
}

SsdBlocks ssd_warpgroup_blocks(const SsdView& a) {
  return {int64_t{Units(a).blocks_per_group} * a.G, properties().multiprocessors};
}

void launch_ssd_warpgroup_state(const SsdView& a) { launch_pass<Pass::state>(a); }
void launch_ssd_warpgroup_scan(const SsdView& a) { launch_pass<Pass::scan>(a); }

}  // namespace ssm::cuda
