// What we need to know of a SentencePiece model, read from its protobuf before libsentencepiece sees it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ssm::text {

enum class SentencePieceType : uint8_t { normal = 1, unknown, control, user_defined, unused, byte };

struct SentencePieceModel {
  struct Piece {
    std::string text;
    SentencePieceType type = SentencePieceType::normal;
    float score = 0;
  };
  std::vector<Piece> pieces;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool byte_fallback = false;
  bool is_bpe = false;
  bool has_charsmap = false;  // characters are replaced before encoding
  std::string bos_piece = "<s>", eos_piece = "</s>";
};

// libsentencepiece trusts its models: it may abort, print, or read outside a table. This refuses, with an
// Error that begins with `name`, what it could stumble over, and kinds of models we do not know.
SentencePieceModel read_sentencepiece_model(std::string_view bytes, const std::string& name);

}  // namespace ssm::text
