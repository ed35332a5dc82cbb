// SequenceRunner: feeds tokens of many sequences through a model and their slots, in bounded memory. Prompts
// of unequal length are read together, in pieces cut at multiples of the scan chunk from where each began, so
// that neither the batch nor the piece changes a result (docs/numerics.md).
#pragma once

#include <functional>
#include <span>

#include "ssm/runtime/state_pool.h"

namespace ssm {

class SequenceRunner {
 public:
  SequenceRunner(const CausalLm& model, StatePool& pool);

  // At most this many tokens pass through the model at a time; a multiple of the scan chunk. A card wants
  // large matrix products, a CPU's caches small pieces.
  int64_t piece_tokens() const { return piece_tokens_; }

  struct Input {
    int32_t slot;
    std::span<const int32_t> ids;  // not empty
    Tensor embeddings = {};        // [T, M] f32 of the ids' number, read instead of theirs; or undefined
  };

  // Reads every input; returns the logits after each one's last token, [B, V].
  Tensor read(std::span<const Input> inputs);

  // The same for one input, giving each piece's hidden states [T, M] to `visit(first position, hidden)`.
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
  Tensor hidden(std::span<const Input> inputs, std::span<const Piece> pieces,
                const CausalLm::OnLayer& on_layer);

  const CausalLm& model_;
  StatePool& pool_;
  int64_t piece_tokens_;
  Arena arena_;  // activations
};

}  // namespace ssm
