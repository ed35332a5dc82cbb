// A SentencePiece BPE model with our own merges: words come out id for id as from libsentencepiece, some ten
// times as fast. User-defined pieces are taken out of the word first; then the pair whose joined piece has
// the highest score is merged, the leftmost of equal ones; characters without a piece become bytes.
#pragma once

#include <optional>

#include "ssm/text/added_tokens.h"
#include "ssm/text/bpe.h"
#include "ssm/text/sentencepiece_model.h"

namespace ssm::text {

class SentencePieceBpe {
 public:
  // Nothing where the library does what this does not: unigram models, unused or very long
  // pieces, characters that only occur inside of pieces, bytes without a piece, a piece that is there twice.
  static std::optional<SentencePieceBpe> of(const SentencePieceModel& model);

  // Appends the ids of a word as the normalizer leaves it: with the symbol for spaces, and the first one.
  void encode(std::string_view word, std::vector<int32_t>& out) const;

 private:
  SentencePieceBpe(AddedTokenFinder user_defined, Bpe bpe)
      : user_defined_(std::move(user_defined)), bpe_(std::move(bpe)) {}

  AddedTokenFinder user_defined_;
  Bpe bpe_;
};

}  // namespace ssm::text
