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

Tensor SequenceRunner::hidden(std::span<const Input> inputs) {
  const ArenaScope scope(&arena_);
  std::vector<int64_t> lengths;
  std::vector<int32_t> slots, ids;
  for (const Input& input : inputs) {
    lengths.push_back(static_cast<int64_t>(input.ids.size()));
    slots.push_back(input.slot);
    ids.insert(ids.end(), input.ids.begin(), input.ids.end());
  }
  const Tensor id_tensor =
      Tensor::from_values<int32_t>(ids, {static_cast<int64_t>(ids.size())}).to(model_.device());
  return model_.hidden(id_tensor, SequenceBatch(lengths, slots), pool_.state());
}

Tensor SequenceRunner::logits(const Tensor& hidden) {
  const ArenaScope scope(&arena_);
  return model_.logits(hidden);
}

void SequenceRunner::read_all(const Input& input, const Visit& visit) {
  const auto total = static_cast<int64_t>(input.ids.size());
  for (int64_t begin = 0; begin < total; begin += piece_tokens_) {
    const auto length = static_cast<size_t>(std::min(piece_tokens_, total - begin));
    const Input piece{input.slot, input.ids.subspan(static_cast<size_t>(begin), length)};
    visit(begin, hidden(std::span(&piece, 1)));
  }
}

}  // namespace ssm
