#include <algorithm>
#include <cmath>
#include <cstring>
#include <unordered_set>

#include "ssm/core/error.h"
#include "ssm/text/ggml_parts.h"
#include "ssm/text/utf8.h"

namespace ssm::text {
namespace {

using Type = SentencePieceType;

constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";

// A protobuf message, field by field.
class MessageWriter {
 public:
  MessageWriter& number(uint32_t field, uint64_t value) {
    varint(field << 3);
    varint(value);
    return *this;
  }
  MessageWriter& bytes(uint32_t field, std::string_view value) {
    varint((field << 3) | 2);
    varint(value.size());
    bytes_.append(value);
    return *this;
  }
  MessageWriter& real(uint32_t field, float value) {
    varint((field << 3) | 5);
    char raw[sizeof value];
    std::memcpy(raw, &value, sizeof value);
    bytes_.append(raw, sizeof raw);
    return *this;
  }
  std::string take() { return std::move(bytes_); }

 private:
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_.push_back(static_cast<char>((value & 0x7F) | 0x80));
    bytes_.push_back(static_cast<char>(value));
  }
  std::string bytes_;
};

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  for (size_t found; (found = text.find(from)) != text.npos; text.remove_prefix(found + from.size()))
    out.append(text.substr(0, found)).append(to);
  return out.append(text);
}

struct Pieces {
  std::vector<SentencePieceModel::Piece> list;
  bool is_bpe = true;
};

// llama.cpp's converter calls user-defined pieces normal. In BPE a normal piece is what two others make; one
// of several characters that nothing makes, with the score of a piece that was not learned, was user-defined.
void find_user_defined(Pieces& pieces) {
  std::unordered_set<std::string_view> known;
  for (const auto& piece : pieces.list) known.insert(piece.text);
  for (auto& piece : pieces.list) {
    if (piece.type != Type::normal || piece.score != 0) continue;
    const std::string_view text = piece.text;
    bool made = text.empty() || utf8_step(text, 0).size == text.size();
    for (size_t cut = 1; !made && cut < text.size(); ++cut)
      made = known.contains(text.substr(0, cut)) && known.contains(text.substr(cut));
    if (!made) piece.type = Type::user_defined;
  }
}

Pieces pieces_of(const GgmlTokenizer& tokenizer, const std::string& name) {
  SSM_CHECK(!tokenizer.scores.empty(), "{}: key tokenizer.ggml.scores is missing", name);
  Pieces pieces;
  size_t count = tokenizer.tokens.size();
  const auto type_of = [&](size_t id) {
    return tokenizer.types.empty() ? static_cast<int32_t>(Type::normal) : tokenizer.types[id];
  };
  while (count > 0 && is_padding(tokenizer.tokens[count - 1], type_of(count - 1), count - 1)) --count;
  for (size_t id = 0; id < count; ++id) {
    const int32_t type = type_of(id);
    SSM_CHECK(type >= 1 && type <= 6, "{}: key tokenizer.ggml.token_type: item {} is {}", name, id, type);
    SentencePieceModel::Piece piece{tokenizer.tokens[id], static_cast<Type>(type), tokenizer.scores[id]};
    if (piece.type == Type::normal && piece.score != std::trunc(piece.score)) pieces.is_bpe = false;
    if (piece.type == Type::user_defined) piece.text = replaced(piece.text, " ", kSpaceSymbol);
    pieces.list.push_back(std::move(piece));
  }
  if (pieces.is_bpe) find_user_defined(pieces);
  return pieces;
}

}  // namespace

std::string sentencepiece_of_ggml(const GgmlTokenizer& tokenizer, const std::string& name) {
  const Pieces pieces = pieces_of(tokenizer, name);
  MessageWriter model, trainer;
  bool has_bytes = false;
  for (const auto& [text, type, score] : pieces.list) {
    has_bytes |= type == Type::byte;
    model.bytes(1,
                MessageWriter().bytes(1, text).real(2, score).number(3, static_cast<uint64_t>(type)).take());
  }
  trainer.number(3, pieces.is_bpe ? 2 : 1).number(4, pieces.list.size()).number(35, has_bytes ? 1 : 0);
  const auto special = [&](const std::optional<int32_t>& id, uint32_t id_field, uint32_t piece_field) {
    if (!id) return;
    SSM_CHECK(*id >= 0 && static_cast<size_t>(*id) < pieces.list.size(), "{}: special token {} is none of {}",
              name, *id, pieces.list.size());
    trainer.number(id_field, static_cast<uint64_t>(*id));
    trainer.bytes(piece_field, pieces.list[static_cast<size_t>(*id)].text);
  };
  const auto unknown = std::find_if(pieces.list.begin(), pieces.list.end(),
                                    [](const auto& piece) { return piece.type == Type::unknown; });
  if (unknown != pieces.list.end()) special(static_cast<int32_t>(unknown - pieces.list.begin()), 40, 45);
  special(tokenizer.bos, 41, 46);
  special(tokenizer.eos, 42, 47);
  model.bytes(2, trainer.take());
  model.bytes(3, MessageWriter()
                     .bytes(1, "identity")
                     .number(3, tokenizer.add_space_prefix)
                     .number(4, tokenizer.remove_extra_whitespaces)
                     .number(5, 1)
                     .take());
  return model.take();
}

GgmlTokenizer ggml_of_sentencepiece(std::string_view bytes, const std::string& name) {
  const SentencePieceModel model = read_sentencepiece_model(bytes, name);
  SSM_CHECK(model.is_bpe, "{}: trainer_spec.model_type: GGUF has BPE only, and this model is unigram", name);
  SSM_CHECK(!model.has_charsmap, "{}: normalizer_spec.precompiled_charsmap: GGUF cannot say that", name);
  GgmlTokenizer out;
  out.kind = "llama";
  out.pre = "default";
  out.add_space_prefix = model.add_dummy_prefix;
  out.remove_extra_whitespaces = model.remove_extra_whitespaces;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const auto& piece = model.pieces[id];
    const auto number = static_cast<int32_t>(id);
    if (piece.type == Type::unknown) out.unk = number;
    if (piece.type == Type::control && piece.text == model.bos_piece) out.bos = number;
    if (piece.type == Type::control && piece.text == model.eos_piece) out.eos = number;
    out.tokens.push_back(piece.type == Type::user_defined ? replaced(piece.text, kSpaceSymbol, " ")
                                                          : piece.text);
    out.types.push_back(static_cast<int32_t>(piece.type));
    out.scores.push_back(piece.score);
  }
  return out;
}

}  // namespace ssm::text
