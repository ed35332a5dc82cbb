// Work goes in rounds of a few chunks, so that its memory does not grow with T. A piece is up to kPieceChunks
// chunks of one sequence; a task is a piece and a block of heads of one group: for each head it walks the
// piece forwards for the state before each chunk, then backwards. What the heads of a group add to dB and dC
// is summed in the task, then over the tasks of the group in their order; the products that all heads share
// come last, once a group: dC = dS B and dB = dS^T C. Pieces of a long sequence come one a round, last first;
// their first states are computed once at the start.
#include <algorithm>
#include <vector>

#include "ssm/core/parallel.h"
#include "ssm/ops/ssd_scan/ssd_scan_backward_operands.h"
#include "ssm/ops/ssd_scan/ssd_scan_cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ssm/ops/ssd_scan/ssd_scan_backward_cpu.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ssm/ops/ssd_scan/ssd_scan_backward_chunk-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {
namespace {

void ssd_backward_bmm(const SsdBackward& k, const SsdChunkWork& chunk, int64_t g) {
  chunk_bmm(k.s, chunk, g);
}

// The states of one head before the first chunk of each piece of a sequence; `states` are H * state apart by
// piece and hold the first already.
void ssd_backward_starts(const SsdBackward& k, int64_t begin, int64_t end, int64_t head, float* states) {
  const int64_t N = k.s.N, N_pad = k.s.N_pad, piece = kPieceChunks * kL;
  const BackScratch scratch(k, 1 + kL / 16);  // the state, and B: P_pad is at least 16
  const int64_t g = head / (k.s.H / k.s.G);
  float* const B = scratch.states + k.state();
  const int64_t last = begin + (end - begin - 1) / piece * piece;
  for (int64_t t = begin; t < last; t += kL) {
    float* const from = states + (t - begin) / piece * k.s.H * k.state();
    float* const to = (t + kL - begin) % piece == 0 ? from + k.s.H * k.state() : scratch.states;
    for (int64_t j = 0; j < kL; ++j) {
      std::copy_n(k.s.B.at(t + j) + g * N, N, B + j * N_pad);
      std::fill(B + j * N_pad + N, B + (j + 1) * N_pad, 0.0f);
    }
    const bool first = (t - begin) % piece == 0;
    advance_state(k, head, {t, kL, nullptr}, B, scratch, first ? from : scratch.states, to);
  }
}

void ssd_backward_heads(const SsdBackward& k, const SsdPiece& piece, int64_t g, int64_t block, float* sums) {
  const SsdOperands& s = k.s;
  const int64_t heads = s.H / s.G, state = k.state();
  const auto partial_of = [&](int64_t chunk) {
    return SsdPartial(s, piece.partials + ((chunk * s.G + g) * k.blocks + block) * SsdPartial::floats(s));
  };
  for (int64_t i = 0; i < piece.count; ++i) std::fill_n(partial_of(i).dSt, SsdPartial::floats(s), 0.0f);
  const BackScratch scratch(k, piece.count);
  const int64_t end = g * heads + std::min(heads, (block + 1) * k.block_heads);
  for (int64_t head = g * heads + block * k.block_heads; head < end; ++head) {
    for (int64_t p = 0; p < s.P_pad; ++p) {
      scratch.D[p] = !s.D || p >= s.P ? 0.0f : s.D_per_channel ? s.D[head * s.P + p] : s.D[head];
    }
    std::fill_n(scratch.dD, s.P_pad, 0.0f);
    if (piece.start)
      std::copy_n(piece.start + head * state, state, scratch.states);
    else
      std::fill_n(scratch.states, state, 0.0f);
    for (int64_t i = 0; i + 1 < piece.count; ++i) {
      float* const from = scratch.states + i * state;
      advance_state(k, head, piece.chunks[i], piece.chunks[i].B(s, g), scratch, from, from + state);
    }
    if (piece.dh_after)
      std::copy_n(piece.dh_after + head * state, state, scratch.dh);
    else
      std::fill_n(scratch.dh, state, 0.0f);
    float* const head_sums = sums + head * k.parameters();
    std::fill_n(head_sums, 2, 0.0f);
    for (int64_t i = piece.count; i-- > 0;) {
      chunk_backward(k, head, piece.chunks[i], scratch.states + i * state, scratch, partial_of(i), head_sums);
    }
    if (piece.dh_before) std::copy_n(scratch.dh, state, piece.dh_before + head * state);
    std::copy_n(scratch.dD, s.P_pad, head_sums + 2);
  }
}

// dB and dC of a chunk and group from the partial sums [blocks].
void ssd_backward_finish(const SsdBackward& k, const SsdChunkWork& chunk, int64_t g, float* partials) {
  const DF d;
  const SsdOperands& s = k.s;
  const int64_t floats = SsdPartial::floats(s), L = chunk.length;
  const SsdPartial sum(s, partials);
  for (int64_t block = 1; block < k.blocks; ++block) {
    const float* const from = partials + block * floats;
    for (int64_t i = 0; i < floats; i += lanes()) {
      hn::StoreU(hn::Add(hn::LoadU(d, partials + i), hn::LoadU(d, from + i)), d, partials + i);
    }
  }
  float* const dS = cpu::thread_scratch(kL * kL);
  for (int64_t i = 0; i < kL; ++i) {
    for (int64_t j = 0; j < kL; ++j) dS[i * kL + j] = sum.dSt[j * kL + i];
  }
  for (int64_t n = 0; n < s.N_pad; n += kTileRows) {
    for_each_tile(whole(L), [&](auto tile, int64_t i) HWY_ATTR {
      tile.load(sum.dCt + n * kL + i, kL);
      tile.add_product(chunk.B(s, g) + n, 1, s.N_pad, sum.dSt + i, kL, L);
      tile.store(sum.dCt + n * kL + i, kL);
      tile.load(sum.dBt + n * kL + i, kL);
      tile.add_product(chunk.Ct(s, g) + n * kL, kL, 1, dS + i, kL, L);
      tile.store(sum.dBt + n * kL + i, kL);
    });
  }
  for (const auto& [to, from] : {std::pair(k.dB, sum.dBt), std::pair(k.dC, sum.dCt)}) {
    for (int64_t i = 0; to && i < L; ++i) {
      float* const row = to.at(chunk.begin + i) + g * s.N;
      for (int64_t n = 0; n < s.N; ++n) row[n] = from[n * kL + i];
    }
  }
}

}  // namespace
}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ssm {

HWY_EXPORT(ssd_backward_bmm);
HWY_EXPORT(ssd_backward_starts);
HWY_EXPORT(ssd_backward_heads);
HWY_EXPORT(ssd_backward_finish);

namespace {

constexpr int64_t kHeadBlocks = 8;  // about as many tasks a piece

class SsdRounds {
 public:
  SsdRounds(const SsdBackward& k, const SsdScanGrads& grads)
      : k_(k),
        grads_(grads),
        capacity_(std::max<int64_t>(kPieceChunks, 2 * num_threads())),
        shared_(Tensor::empty({capacity_, k.s.G * SsdChunkWork::floats_per_group(k.s)})),
        partials_(Tensor::empty({capacity_, k.s.G * k.blocks * SsdPartial::floats(k.s)})),
        sums_(Tensor::empty({capacity_, k.s.H, k.parameters()})) {
    chunks_.reserve(static_cast<size_t>(capacity_));  // pieces point into it
  }

  // Chunks of tokens [begin, end) of one sequence, at most kPieceChunks.
  void add(int64_t begin, int64_t end, const float* start, const float* dh_after, float* dh_before) {
    const int64_t count = (end - begin + kL - 1) / kL;
    if (std::ssize(chunks_) + count > capacity_) run();
    const int64_t first = std::ssize(chunks_);
    for (int64_t t = begin; t < end; t += kL) {
      chunks_.push_back(
          {t, std::min(kL, end - t), shared_.data<float>() + std::ssize(chunks_) * shared_.stride(0)});
    }
    pieces_.push_back({chunks_.data() + first, count, partials_.data<float>() + first * partials_.stride(0),
                       start, dh_after, dh_before});
  }

  void run() {
    const SsdOperands& s = k_.s;
    const int64_t chunks = std::ssize(chunks_), pieces = std::ssize(pieces_), tasks = s.G * k_.blocks;
    parallel_for(chunks * s.G, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        HWY_DYNAMIC_DISPATCH(ssd_backward_bmm)(k_, chunks_[static_cast<size_t>(i / s.G)], i % s.G);
    });
    parallel_for(pieces * tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t task = i % tasks;
        HWY_DYNAMIC_DISPATCH(ssd_backward_heads)
        (k_, pieces_[static_cast<size_t>(i / tasks)], task / k_.blocks, task % k_.blocks,
         sums_.data<float>() + i / tasks * sums_.stride(0));
      }
    });
    parallel_for(k_.dB || k_.dC ? chunks * s.G : 0, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        HWY_DYNAMIC_DISPATCH(ssd_backward_finish)
        (k_, chunks_[static_cast<size_t>(i / s.G)], i % s.G,
         partials_.data<float>() + i * k_.blocks * SsdPartial::floats(s));
      }
    });
    for (int64_t i = 0; i < pieces; ++i) add_parameters(sums_.data<float>() + i * sums_.stride(0));
    chunks_.clear(), pieces_.clear();
  }

 private:
  void add_parameters(const float* sums) const {
    const int64_t H = k_.s.H, P = k_.s.P;
    const auto at = [](const Tensor& x, int64_t i) -> float& { return x.data<float>()[i * x.stride(0)]; };
    for (int64_t h = 0; h < H; ++h, sums += k_.parameters()) {
      if (grads_.dA.defined()) at(grads_.dA, h) += sums[0];
      if (grads_.ddt_bias.defined()) at(grads_.ddt_bias, h) += sums[1];
      if (!grads_.dD.defined()) continue;
      float sum = 0;
      for (int64_t p = 0; p < P; ++p) {
        if (k_.s.D_per_channel)
          at(grads_.dD, h * P + p) += sums[2 + p];
        else
          sum += sums[2 + p];
      }
      if (!k_.s.D_per_channel) at(grads_.dD, h) += sum;
    }
  }

  const SsdBackward& k_;
  const SsdScanGrads& grads_;
  int64_t capacity_;  // chunks
  Tensor shared_, partials_, sums_;
  std::vector<SsdChunkWork> chunks_;
  std::vector<SsdPiece> pieces_;
};

// A state of each sequence, [B, H, N, P], or none: its rows of P_pad, N_pad of them, as rounds read and write
// them.
class PaddedStates {
 public:
  PaddedStates(const SsdBackward& k, const Tensor& states) : k_(k), states_(states) {
    if (states.defined()) padded_ = Tensor::empty({states.size(0), k.s.H * k.state()});
  }
  float* at(int64_t b) const {
    return padded_.defined() ? padded_.data<float>() + b * padded_.stride(0) : nullptr;
  }
  void pad() const {
    if (padded_.defined()) std::fill_n(padded_.data<float>(), padded_.numel(), 0.0f);
    for_each_row([](float* state, float* row, int64_t P) { std::copy_n(state, P, row); });
  }
  void unpad() const {
    for_each_row([](float* state, float* row, int64_t P) { std::copy_n(row, P, state); });
  }

 private:
  template <class F>
  void for_each_row(const F& f) const {
    const int64_t N = k_.s.N, P = k_.s.P;
    for (int64_t i = 0; padded_.defined() && i < states_.size(0) * k_.s.H; ++i) {
      for (int64_t n = 0; n < N; ++n) {
        f(states_.data<float>() + (i * N + n) * P, padded_.data<float>() + i * k_.state() + n * k_.s.P_pad,
          P);
      }
    }
  }

  const SsdBackward& k_;
  const Tensor states_;
  Tensor padded_;
};

// A sequence of several pieces, each a round of its own: the states before them first.
void long_sequence(const SsdBackward& k, int64_t begin, int64_t end, const float* start, const float* dlast,
                   float* dinitial, SsdRounds& rounds) {
  const int64_t tokens = kPieceChunks * kL, pieces = (end - begin + tokens - 1) / tokens;
  const int64_t states = k.s.H * k.state();
  const Tensor starts = Tensor::empty({pieces, states}), dh = Tensor::empty({states});
  if (start)
    std::copy_n(start, states, starts.data<float>());
  else
    std::fill_n(starts.data<float>(), states, 0.0f);
  parallel_for(k.s.H, 1, [&](int64_t first, int64_t last) {
    for (int64_t h = first; h < last; ++h) {
      HWY_DYNAMIC_DISPATCH(ssd_backward_starts)(k, begin, end, h, starts.data<float>() + h * k.state());
    }
  });
  for (int64_t i = pieces; i-- > 0;) {
    const int64_t t = begin + i * tokens;
    rounds.add(t, std::min(end, t + tokens), starts.data<float>() + i * states,
               i + 1 < pieces ? dh.data<float>() : dlast, i > 0 ? dh.data<float>() : dinitial);
    rounds.run();
  }
}

}  // namespace

void cpu::ssd_scan_backward(const SsdScanArgs& args, const SequenceBatch& batch, const Tensor& initial,
                            const Tensor& dy, const SsdScanGrads& grads, const Tensor& dlast) {
  const auto wanted = [](const Tensor& x) {
    return x.defined() ? SsdGradRows{x.data<float>(), x.stride(0)} : SsdGradRows{};
  };
  SsdBackward k{};
  k.s = SsdOperands::of(args);
  k.dy = {dy.data<float>(), dy.stride(0)};
  k.dx = wanted(grads.dx), k.ddt = wanted(grads.ddt), k.dB = wanted(grads.dB), k.dC = wanted(grads.dC);
  const int64_t heads = k.s.H / k.s.G, wanted_blocks = std::max<int64_t>(1, kHeadBlocks / k.s.G);
  k.block_heads = (heads + wanted_blocks - 1) / wanted_blocks;
  k.blocks = (heads + k.block_heads - 1) / k.block_heads;
  SsdRounds rounds(k, grads);
  const PaddedStates starts(k, initial), after(k, dlast), before(k, grads.dinitial);
  starts.pad();
  after.pad();
  for (int64_t b = 0; b < batch.size(); ++b) {
    if (batch.length(b) <= kPieceChunks * kL) {
      rounds.add(batch.offset(b), batch.offset(b + 1), starts.at(b), after.at(b), before.at(b));
    } else {
      rounds.run();
      long_sequence(k, batch.offset(b), batch.offset(b + 1), starts.at(b), after.at(b), before.at(b), rounds);
    }
  }
  rounds.run();
  before.unpad();
}

}  // namespace ssm
#endif
