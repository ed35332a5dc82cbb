#include <sentencepiece_processor.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <unordered_map>

#include "ssm/core/error.h"
#include "ssm/text/added_tokens.h"
#include "ssm/text/sentencepiece_bpe.h"
#include "ssm/text/sentencepiece_model.h"
#include "ssm/text/tokenizer.h"
#include "ssm/text/utf8.h"
#include "ssm/text/word_ids.h"

// Exported by the library, but in none of its public headers.
namespace sentencepiece::logging {
void SetMinLogLevel(int level);
}

namespace ssm::text {
namespace {

constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";

std::string with_spaces(std::string_view piece) {
  std::string out;
  size_t at = 0;
  for (size_t found; (found = piece.find(kSpaceSymbol, at)) != piece.npos; at = found + kSpaceSymbol.size()) {
    out.append(piece.substr(at, found - at)).append(1, ' ');
  }
  return out.append(piece.substr(at));
}

// Whether a text may be encoded word by word: no piece goes on over a space into another word, and a word's
// own dummy prefix is its space. libsentencepiece is slow on long texts.
bool words_are_independent(const SentencePieceModel& model) {
  if (!model.is_bpe || !model.byte_fallback || !model.add_dummy_prefix || model.remove_extra_whitespaces ||
      model.has_charsmap) {
    return false;
  }
  bool has_space = false;
  for (const auto& [text, type, score] : model.pieces) {
    if (type == SentencePieceType::control || type == SentencePieceType::unknown) continue;
    has_space |= text == kSpaceSymbol && type == SentencePieceType::normal;
    std::string_view rest = text;
    while (rest.starts_with(kSpaceSymbol)) rest.remove_prefix(kSpaceSymbol.size());
    if (rest.find(kSpaceSymbol) != rest.npos || text.find(' ') != text.npos) return false;
  }
  return has_space;
}

size_t first_bad_byte(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text, at);
    if (step.code_point < 0) return at;
    at += step.size;
  }
  return text.npos;
}

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(std::string_view bytes, std::string name) : name_(std::move(name)) {
    const SentencePieceModel model = read_sentencepiece_model(bytes, name_);
    read_pieces(model);
    by_words_ = words_are_independent(model);
    if (by_words_) lone_space_ = *find(kSpaceSymbol);
    if (by_words_) bpe_ = SentencePieceBpe::of(model);
    if (!bpe_) load_library(bytes, model.pieces.size());
    drops_first_space_ = model.add_dummy_prefix || model.remove_extra_whitespaces;
    bos_ = control_id(model.bos_piece);
    eos_ = control_id(model.eos_piece);
  }

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    specials_.split(text, [&](std::string_view part, std::optional<int32_t> id) {
      if (id) return ids.push_back(*id);
      first_bad_byte(part) == part.npos || !has_bytes_ ? encode_text(part, ids) : encode_bytes(part, ids);
    });
    return ids;
  }

  int64_t size() const override { return static_cast<int64_t>(bytes_.size()); }
  std::optional<int32_t> find(std::string_view token) const override {
    const auto it = ids_.find(std::string(token));
    return it == ids_.end() ? std::nullopt : std::optional(it->second);
  }
  std::optional<int32_t> bos() const override { return bos_; }
  std::optional<int32_t> eos() const override { return eos_; }
  std::string_view bytes_of(int32_t id) const override {
    SSM_CHECK(id >= 0 && id < size(), "the tokenizer has no token with the id {}", id);
    return bytes_[static_cast<size_t>(id)];
  }
  bool drops_first_space() const override { return drops_first_space_; }
  bool drops_space_after(int32_t id) const override {
    return drops_first_space_ && is_special_[static_cast<size_t>(id)];
  }

 private:
  void load_library(std::string_view bytes, size_t pieces) {
    sentencepiece::logging::SetMinLogLevel(4);  // above the last level: it says nothing
    const auto status = processor_.LoadFromSerializedProto({bytes.data(), bytes.size()});
    SSM_CHECK(status.ok(), "{}: {}", name_, status.error_message());
    SSM_CHECK(static_cast<size_t>(processor_.GetPieceSize()) == pieces, "{}: pieces are missing", name_);
  }

  void read_pieces(const SentencePieceModel& model) {
    is_special_.resize(model.pieces.size());
    for (size_t i = 0; i < model.pieces.size(); ++i) {
      const auto& [text, type, score] = model.pieces[i];
      const auto id = static_cast<int32_t>(i);
      ids_.emplace(text, id);
      if (type == SentencePieceType::byte) {
        int value = 0;
        const char* const hex = text.data() + 3;
        SSM_CHECK(text.size() == 6 && text.starts_with("<0x") && text.ends_with(">") &&
                      std::from_chars(hex, hex + 2, value, 16).ptr == hex + 2 && value >= 0,
                  "{}: piece {} is a byte, but no <0xHH>", name_, i);
        byte_ids_[static_cast<size_t>(value)] = id;
        bytes_.emplace_back(1, static_cast<char>(value));
        has_bytes_ = true;
        continue;
      }
      // The unknown piece is recognised like a control piece: that is how chat templates write it.
      is_special_[i] = type == SentencePieceType::control || type == SentencePieceType::unknown;
      if (is_special_[i]) specials_.add(text, {.content = text, .id = id});
      bytes_.push_back(is_special_[i] ? text : with_spaces(text));
    }
  }

  std::optional<int32_t> control_id(const std::string& piece) const {
    const auto id = find(piece);
    return id && is_special_[static_cast<size_t>(*id)] ? id : std::nullopt;
  }

  void encode_text(std::string_view text, std::vector<int32_t>& out) const {
    if (!by_words_) return encode_whole(text, out);
    WordIds words(out);
    std::string spelled;
    const auto encode_word = [&](std::string_view word) {
      if (word.empty()) return out.push_back(lone_space_);  // which the prefix stands for
      words.append(word, [&] {
        if (!bpe_) return encode_whole(word, out);
        spelled = kSpaceSymbol;
        for (const char c : word) c == ' ' ? spelled.append(kSpaceSymbol) : spelled.append(1, c);
        bpe_->encode(spelled, out);
      });
    };
    size_t begin = 0;
    for (size_t at = text.find(' ', 1); at != text.npos; at = text.find(' ', at + 1)) {
      if (text[at - 1] == ' ' || text.substr(0, at).ends_with(kSpaceSymbol)) continue;
      encode_word(text.substr(begin, at - begin));
      begin = at + 1;
    }
    encode_word(text.substr(begin));
  }

  void encode_whole(std::string_view text, std::vector<int32_t>& out) const {
    std::vector<int> ids;
    const auto status = processor_.Encode({text.data(), text.size()}, &ids);
    SSM_CHECK(status.ok(), "{}: {}", name_, status.error_message());
    out.insert(out.end(), ids.begin(), ids.end());
  }

  // Text with ill-formed bytes. Each is encoded as a character that neither the text nor any piece has, and
  // which therefore comes out as its four bytes; these then become the one byte.
  void encode_bytes(std::string_view text, std::vector<int32_t>& out) const {
    const std::string stand_in = unused_character(text);
    std::string well_formed;
    std::vector<int32_t> bad_ids;
    for (size_t at = 0; at < text.size();) {
      const Utf8Step step = utf8_step(text, at);
      if (step.code_point < 0) {
        well_formed.append(stand_in);
        bad_ids.push_back(byte_id(text[at]));
      } else {
        well_formed.append(text.substr(at, step.size));
      }
      at += step.size;
    }
    std::vector<int32_t> ids, wanted;
    encode_text(well_formed, ids);
    for (const char c : stand_in) wanted.push_back(byte_id(c));
    auto bad = bad_ids.begin();
    for (auto at = ids.begin(); at != ids.end();) {
      const auto found = std::search(at, ids.end(), wanted.begin(), wanted.end());
      out.insert(out.end(), at, found);
      if (found == ids.end()) break;
      SSM_CHECK(bad != bad_ids.end(), "{}: ill-formed UTF-8 is not encoded as bytes", name_);
      out.push_back(*bad++);
      at = found + static_cast<ptrdiff_t>(wanted.size());
    }
    SSM_CHECK(bad == bad_ids.end(), "{}: ill-formed UTF-8 is not encoded as bytes", name_);
  }

  int32_t byte_id(char c) const { return byte_ids_[static_cast<uint8_t>(c)]; }

  std::string unused_character(std::string_view text) const {
    for (int32_t c = 0x10FFFD; c >= 0x100000; --c) {  // private use
      std::string character;
      append_utf8(c, character);
      if (text.find(character) == text.npos && !ids_.contains(character)) return character;
    }
    fail("{}: the text is not UTF-8", name_);
  }

  std::string name_;
  sentencepiece::SentencePieceProcessor processor_;  // loaded where bpe_ is not there
  std::vector<std::string> bytes_;                   // what each id stands for
  std::unordered_map<std::string, int32_t> ids_;
  std::vector<bool> is_special_;
  std::array<int32_t, 256> byte_ids_{};
  bool has_bytes_ = false;
  bool drops_first_space_ = false;
  bool by_words_ = false;
  int32_t lone_space_ = 0;
  std::optional<SentencePieceBpe> bpe_;  // of words, where it does what the library does
  AddedTokenFinder specials_;
  std::optional<int32_t> bos_, eos_;
};

}  // namespace

std::unique_ptr<Tokenizer> parse_sentencepiece(std::string_view model, std::string_view name) {
  return std::make_unique<SentencePieceTokenizer>(model, std::string(name));
}

}  // namespace ssm::text
