#include "ssm/runtime/sequence_runner.h"

#include <algorithm>

#include "ssm/ops/ssd_scan/ssd_scan.h"

namespace ssm {

namespace {

constexpr int64_t kPieceTokensCpu = 512, kPieceTokensCuda = 16384;
static_assert(kPieceTokensCpu % kSsdChunk == 0 && kPieceTokensCuda % kSsdChunk == 0);

}  // namespace

SequenceRunner::SequenceRunner(const CausalLm& model, StatePool& pool, Arena* arena)
    : model_(model),
      pool_(pool),
      piece_tokens_(model.device().is_cuda() ? kPieceTokensCuda : kPieceTokensCpu),
      arena_(arena ? arena : &own_arena_.emplace()) {}

Tensor SequenceRunner::hidden(std::span<const Input> inputs, std::span<const Piece> pieces,
                              const CausalLm::OnLayer& on_layer) {
  std::vector<int64_t> lengths;
  std::vector<int32_t> slots, ids;
  for (const Piece& piece : pieces) {
    pool_.reserve(inputs[piece.input].slot, piece.length);
    const auto part =
        inputs[piece.input].ids.subspan(static_cast<size_t>(piece.begin), static_cast<size_t>(piece.length));
    lengths.push_back(piece.length);
    slots.push_back(inputs[piece.input].slot);
    ids.insert(ids.end(), part.begin(), part.end());
  }
  Tensor x;  // [T, M]
  if (inputs[pieces[0].input].embeddings.defined()) {
    x = Tensor::empty({std::ssize(ids), model_.hidden_size()}, DType::f32, model_.device());
    int64_t row = 0;
    for (const Piece& piece : pieces) {
      const Tensor from = inputs[piece.input].embeddings.slice(0, piece.begin, piece.begin + piece.length);
      copy_bytes(x.slice(0, row, row + piece.length).raw(), x.device(), from.raw(), from.device(),
                 from.bytes());
      row += piece.length;
    }
  } else {
    x = model_.embed(Tensor::from_values<int32_t>(ids, {std::ssize(ids)}).to(model_.device()));
  }
  return model_.hidden_from(std::move(x), SequenceBatch(lengths, slots), pool_.state(), on_layer);
}

// What of the inputs passes next: all that is left of one, or a multiple of the scan chunk.
std::vector<SequenceRunner::Piece> SequenceRunner::next_pieces(std::span<const Input> inputs,
                                                               std::span<const int64_t> read) const {
  std::vector<Piece> pieces;
  int64_t room = piece_tokens_;
  for (size_t i = 0; i < inputs.size() && room > 0; ++i) {
    const int64_t left = std::ssize(inputs[i].ids) - read[i];
    if (left == 0) continue;
    const int64_t take = left <= room ? left : room / kSsdChunk * kSsdChunk;
    if (take == 0) break;
    pieces.push_back({i, read[i], take});
    room -= take;
  }
  return pieces;
}

void SequenceRunner::check(std::span<const Input> inputs, int64_t width) {
  SSM_CHECK(!inputs.empty(), "no sequence to read");
  for (const Input& input : inputs) {
    SSM_CHECK(!input.ids.empty(), "slot {} has no token to read", input.slot);
    SSM_CHECK(input.embeddings.defined() == inputs[0].embeddings.defined(),
              "slot {}: ids and embeddings in one batch", input.slot);
    if (!input.embeddings.defined()) continue;
    SSM_CHECK(input.embeddings.dtype() == DType::f32 && input.embeddings.contiguous() &&
                  input.embeddings.shape() == Shape({std::ssize(input.ids), width}),
              "embeddings {} of {} for {} tokens of width {}", input.embeddings.shape(),
              name_of(input.embeddings.dtype()), input.ids.size(), width);
  }
}

void SequenceRunner::read_pieces(std::span<const Input> inputs, const VisitPieces& visit,
                                 const CausalLm::OnLayer& on_layer) {
  check(inputs, model_.hidden_size());
  ArenaScope scope(arena_);
  std::vector<int64_t> read(inputs.size());
  for (;;) {
    const std::vector<Piece> pieces = next_pieces(inputs, read);
    if (pieces.empty()) return;
    visit(pieces, hidden(inputs, pieces, on_layer));
    for (const Piece& piece : pieces) read[piece.input] += piece.length;
  }
}

Tensor SequenceRunner::hidden(std::span<const Input> inputs) {
  check(inputs, model_.hidden_size());
  const ArenaScope scope(arena_);
  std::vector<Piece> whole;
  for (size_t i = 0; i < inputs.size(); ++i) whole.push_back({i, 0, std::ssize(inputs[i].ids)});
  return hidden(inputs, whole, {});
}

Tensor SequenceRunner::logits(const Tensor& hidden) {
  const ArenaScope scope(arena_);
  return model_.logits(hidden);
}

void SequenceRunner::read_all(const Input& input, const Visit& visit) {
  read_pieces(std::span(&input, 1),
              [&](std::span<const Piece> pieces, const Tensor& h) { visit(pieces[0].begin, h); });
}

}  // namespace ssm
