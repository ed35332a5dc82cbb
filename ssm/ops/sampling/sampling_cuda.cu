#include "ssm/core/launch.cuh"
#include "ssm/ops/sampling/sampling_cuda.h"
#include "ssm/ops/sampling/sampling_filter.cuh"

namespace ssm::cuda {
namespace {

// 53 bits of Philox4x32-10, at the top: draw_of() of the CPU.
__device__ Units draw_of(uint64_t seed, int64_t position) {
  uint32_t c[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 1, 0};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = __umulhi(0xD2511F53u, c[0]), low0 = 0xD2511F53u * c[0];
    const uint32_t high1 = __umulhi(0xCD9E8D57u, c[2]), low1 = 0xCD9E8D57u * c[2];
    c[0] = high1 ^ c[1] ^ k0, c[1] = low1, c[2] = high0 ^ c[3] ^ k1, c[3] = low0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return (Units{c[0]} << 32 | c[1]) >> 11 << 11;
}

// One cluster a row: reads it once, into shared memory where it fits.
template <bool kKept>
__global__ void __launch_bounds__(kSampleThreads, 1) sample_forward_kernel(const SampleArgs a) {
  extern __shared__ float4 scores[];
  __shared__ SampleShared shared;
  cluster_arrive();
  reinterpret_cast<uint4*>(shared.bins)[threadIdx.x] = {0, 0, 0, 0};
  grid_dependency_wait();
  let_next_start();
  const int64_t b = blockIdx.x / cluster_size();
  Row<kKept> row(a, shared, reinterpret_cast<float*>(scores), b);
  const int32_t best = row.read();
  const SamplingParams& p = row.params();
  if (best < 0 || p.temperature == 0 || p.top_k == 1) {
    if (cluster_rank() == 0 && threadIdx.x == 0) row.finish(best);
    return;
  }
  Cut cut;
  Filter filter(row);
#pragma unroll 1
  for (const bool counts : {true, false}) {  // top_k, top_p
    if (counts ? p.top_k <= 0 || p.top_k >= a.vocab : p.top_p <= 0 || p.top_p >= 1) continue;
    cut = filter.keep(counts, static_cast<Units>(p.top_k), p.top_p, cut);
  }
  row.draw(cut, draw_of(p.seed, row.position()), [&](int32_t id) { row.finish(id); });
}

int32_t segment_of(int64_t vocab, unsigned blocks) {  // whole sectors of memory
  const int64_t warps = int64_t{blocks} * kSampleWarps;
  return static_cast<int32_t>((vocab + warps - 1) / warps + 7) / 8 * 8;
}
size_t bytes_of(int32_t segment) { return sizeof(float) * kSampleWarps * static_cast<size_t>(segment); }

// How many clusters of each size the card runs at once: those of eight leave some of its blocks idle.
class ClustersAtOnce {
 public:
  ClustersAtOnce() {
    for (unsigned size = 2; size <= largest_cluster(); size *= 2) {
      counts_[size] = most_clusters({.grid = dim3(size), .block = dim3(kSampleThreads), .cluster = size},
                                    sample_forward_kernel<true>);
    }
  }
  int of(unsigned size) const { return counts_[size]; }

 private:
  int counts_[9] = {};
};

}  // namespace

void sample(const Tensor& logits, int64_t vocab, const Tensor& rows, const Tensor& seen, const Tensor& ids) {
  const int64_t B = logits.size(0);
  if (B == 0) return;
  static const size_t room = static_cast<size_t>(properties().max_shared_bytes) - sizeof(SampleShared);
  static const bool allowed = allow_shared_bytes(sample_forward_kernel<true>, room);
  static_cast<void>(allowed);
  // As many blocks a row as the card runs at once, more where the row would not fit otherwise.
  static const ClustersAtOnce at_once;
  const unsigned most = largest_cluster();
  unsigned size = most;
  while (size > 1 && B > at_once.of(size)) size /= 2;
  while (size < most && bytes_of(segment_of(vocab, size)) > room) size *= 2;
  const int32_t segment = segment_of(vocab, size);
  const bool kept = bytes_of(segment) <= room;
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const SampleArgs args{.logits = logits.data<float>(),
                        .stride = logits.stride(0),
                        .vocab = static_cast<int32_t>(vocab),
                        .rows = reinterpret_cast<SamplingRow*>(rows.raw()),
                        .seen = seen.defined() ? seen.data<uint8_t>() : nullptr,
                        .slots = seen.defined() ? seen.size(0) : 0,
                        .seen_stride = logits.size(1),
                        .ids = ids.data<int32_t>(),
                        .segment = segment,
                        .vectors = logits.stride(0) % 4 == 0 && aligned(logits.raw()) &&
                                   (!seen.defined() || (logits.size(1) % 4 == 0 && aligned(seen.raw())))};
  launch({.grid = dim3(static_cast<unsigned>(B) * size),
          .block = dim3(kSampleThreads),
          .shared_bytes = kept ? bytes_of(segment) : 0,
          .overlaps_previous = true,
          .cluster = size},
         kept ? sample_forward_kernel<true> : sample_forward_kernel<false>, args);
}

}  // namespace ssm::cuda
