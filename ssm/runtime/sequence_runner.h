// SequenceRunner: feeds tokens of many sequences through a model and their slots, in bounded memory. Inputs
// of unequal length are read together. A text may be cut, here or between calls, at multiples of kSsdChunk
// from where it began; then neither the batch nor the cut changes a result (docs/numerics.md).
#pragma once

#include <functional>
#include <optional>
#include <span>

#include "ssm/runtime/state_pool.h"

namespace ssm {

class SequenceRunner {
 public:
  // Activations come from `arena`, which outlives this, or from one of its own.
  SequenceRunner(const CausalLm& model, StatePool& pool, Arena* arena = nullptr);

  // At most this many tokens pass through the model at a time; a multiple of the scan chunk. A card wants
  // large matrix products, a CPU's caches small pieces.
  int64_t piece_tokens() const { return piece_tokens_; }

  struct Input {
    int32_t slot;
    std::span<const int32_t> ids;  // not empty
    Tensor embeddings = {};        // [T, M] f32 of the ids' number, read instead of theirs; or undefined
  };

  // Reads every input in one pass (where attention's memory ends: none of the pass, and Error); returns the
  // hidden states of all their tokens, one after another, [T, M].
  Tensor hidden(std::span<const Input> inputs);
  Tensor logits(const Tensor& hidden);  // [T, V] f32

  // Reads one input of any length, giving each piece's hidden states [T, M] to `visit(first position,
  // hidden)`.
  using Visit = std::function<void(int64_t, const Tensor&)>;
  void read_all(const Input& input, const Visit& visit);

  // Reads every input piece by piece. A call of `visit` gives the hidden states [T, M] of some pieces, laid
  // one after another; the tensor lives until the next one. An input's pieces come in order.
  struct Piece {
    size_t input;           // its index
    int64_t begin, length;  // of the input's tokens
  };
  using VisitPieces = std::function<void(std::span<const Piece> pieces, const Tensor& hidden)>;
  void read_pieces(std::span<const Input> inputs, const VisitPieces& visit,
                   const CausalLm::OnLayer& on_layer = {});

 private:
  std::vector<Piece> next_pieces(std::span<const Input> inputs, std::span<const int64_t> read) const;
  static void check(std::span<const Input> inputs, int64_t width);
  Tensor hidden(std::span<const Input> inputs, std::span<const Piece> pieces,
                const CausalLm::OnLayer& on_layer);

  SequenceRunner(const SequenceRunner&) = delete;

  const CausalLm& model_;
  StatePool& pool_;
  int64_t piece_tokens_;
  std::optional<Arena> own_arena_;
  Arena* arena_;
};

}  // namespace ssm
