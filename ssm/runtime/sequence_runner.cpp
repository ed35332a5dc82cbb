#include "ssm/runtime/sequence_runner.h"

#include <algorithm>

#include "ssm/ops/ssd_scan/ssd_scan.h"

namespace ssm {

namespace {

constexpr int64_t kPieceTokensCpu = 512, kPieceTokensCuda = 16384;
static_assert(kPieceTokensCpu % kSsdChunk == 0 && kPieceTokensCuda % kSsdChunk == 0);

}  // namespace

SequenceRunner::SequenceRunner(const CausalLm& model, StatePool& pool)
    : model_(model),
      pool_(pool),
      piece_tokens_(model.device().is_cuda() ? kPieceTokensCuda : kPieceTokensCpu) {}

Tensor SequenceRunner::hidden(std::span<const Input> pieces) {
  std::vector<int64_t> lengths;
  std::vector<int32_t> slots, ids;
  for (const Input& piece : pieces) {
    lengths.push_back(static_cast<int64_t>(piece.ids.size()));
    slots.push_back(piece.slot);
    ids.insert(ids.end(), piece.ids.begin(), piece.ids.end());
  }
  const Tensor id_tensor =
      Tensor::from_values<int32_t>(ids, {static_cast<int64_t>(ids.size())}).to(model_.device());
  return model_.hidden(id_tensor, SequenceBatch(lengths, slots), pool_.state());
}

Tensor SequenceRunner::read(std::span<const Input> inputs) {
  const auto B = static_cast<int64_t>(inputs.size());
  SSM_CHECK(B > 0, "no sequence to read");
  ArenaScope scope(&arena_);
  Tensor last;  // [B, M]
  std::vector<Input> left(inputs.begin(), inputs.end());
  for (const Input& input : left) SSM_CHECK(!input.ids.empty(), "slot {} has no token to read", input.slot);
  size_t first = 0;  // inputs before it are read
  while (first < left.size()) {
    std::vector<Input> pieces;
    std::vector<size_t> owners;
    int64_t room = piece_tokens_;
    for (size_t i = first; i < left.size() && room > 0; ++i) {
      const auto wanted = static_cast<int64_t>(left[i].ids.size());
      // All of what is left, or a multiple of the scan chunk.
      const int64_t take = wanted <= room ? wanted : room / kSsdChunk * kSsdChunk;
      if (take == 0) break;
      pieces.push_back({left[i].slot, left[i].ids.first(static_cast<size_t>(take))});
      owners.push_back(i);
      left[i].ids = left[i].ids.subspan(static_cast<size_t>(take));
      room -= take;
    }
    const Tensor h = hidden(pieces);  // [T, M]
    if (!last.defined()) last = Tensor::empty({B, h.size(1)}, h.dtype(), h.device());
    int64_t row = 0;
    for (size_t p = 0; p < pieces.size(); ++p) {
      row += static_cast<int64_t>(pieces[p].ids.size());
      if (!left[owners[p]].ids.empty()) continue;
      const Tensor from = h.select(0, row - 1);
      const Tensor to = last.select(0, static_cast<int64_t>(owners[p]));
      copy_bytes(to.raw(), to.device(), from.raw(), from.device(), from.bytes());
    }
    while (first < left.size() && left[first].ids.empty()) ++first;
  }
  return model_.logits(last);
}

void SequenceRunner::read_all(const Input& input, const Visit& visit) {
  const auto total = static_cast<int64_t>(input.ids.size());
  for (int64_t begin = 0; begin < total; begin += piece_tokens_) {
    ArenaScope scope(&arena_);
    const auto length = static_cast<size_t>(std::min(piece_tokens_, total - begin));
    const Input piece{input.slot, input.ids.subspan(static_cast<size_t>(begin), length)};
    visit(begin, hidden(std::span(&piece, 1)));
  }
}

}  // namespace ssm
