#include "ssm/text/sentencepiece_model.h"

#include <cmath>
#include <cstring>
#include <unordered_set>

#include "ssm/core/error.h"
#include "ssm/text/utf8.h"

namespace ssm::text {
namespace {

constexpr size_t kMaxPieces = size_t{1} << 22;
constexpr size_t kMaxPieceBytes = 4096;

// One field after the other of a protobuf message.
class Message {
 public:
  Message(std::string_view bytes, std::string name) : bytes_(bytes), name_(std::move(name)) {}

  // False at the end. Afterwards the field's number, and its value or bytes.
  bool next() {
    if (at_ == bytes_.size()) return false;
    const uint64_t tag = varint();
    number_ = tag >> 3;
    wire_ = static_cast<int>(tag & 7);
    SSM_CHECK(number_ > 0 && number_ < (1u << 29), "{}: bad field at byte {}", name_, at_);
    if (wire_ == 0) {
      value_ = varint();
    } else if (wire_ == 1 || wire_ == 5) {
      data_ = take(wire_ == 1 ? 8 : 4);
    } else {
      SSM_CHECK(wire_ == 2, "{}: field {} has the unknown wire type {}", name_, number_, wire_);
      data_ = take(varint());
    }
    return true;
  }
  uint64_t number() const { return number_; }
  uint64_t value() const { return expect(0), value_; }
  std::string_view data() const { return expect(2), data_; }
  float number32() const {
    expect(5);
    float f;
    std::memcpy(&f, data_.data(), 4);
    return f;
  }

 private:
  void expect(int wire) const {
    SSM_CHECK(wire_ == wire, "{}: field {} has the wire type {}, not {}", name_, number_, wire_, wire);
  }
  std::string_view take(uint64_t size) {
    SSM_CHECK(size <= bytes_.size() - at_, "{}: field {} is longer than the file", name_, number_);
    at_ += size;
    return bytes_.substr(at_ - size, size);
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      SSM_CHECK(at_ < bytes_.size(), "{}: ends inside a field", name_);
      const auto byte = static_cast<uint8_t>(bytes_[at_++]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    fail("{}: bad number at byte {}", name_, at_);
  }

  std::string_view bytes_;
  std::string name_;
  size_t at_ = 0;
  uint64_t number_ = 0, value_ = 0;
  int wire_ = 0;
  std::string_view data_;
};

void check_text(std::string_view text, const std::string& name) {
  SSM_CHECK(!text.empty() && text.size() <= kMaxPieceBytes, "{} has {} bytes", name, text.size());
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text, at);
    SSM_CHECK(step.code_point > 0, "{} is not UTF-8 text", name);
    at += step.size;
  }
}

SentencePieceModel::Piece read_piece(std::string_view bytes, const std::string& name) {
  SentencePieceModel::Piece piece;
  Message message(bytes, name);
  while (message.next()) {
    if (message.number() == 1) {
      piece.text = message.data();
    } else if (message.number() == 2) {
      piece.score = message.number32();
      SSM_CHECK(std::isfinite(piece.score), "{}.score is not finite", name);
    } else if (message.number() == 3) {
      SSM_CHECK(message.value() >= 1 && message.value() <= 6, "{}.type is {}", name, message.value());
      piece.type = static_cast<SentencePieceType>(message.value());
    }
  }
  check_text(piece.text, name + ".piece");
  return piece;
}

void read_trainer_spec(std::string_view bytes, const std::string& name, SentencePieceModel& model) {
  Message message(bytes, name);
  while (message.next()) {
    switch (message.number()) {
      case 3:
        SSM_CHECK(message.value() == 1 || message.value() == 2,
                  "{}.model_type {} is not supported, only unigram and BPE are", name, message.value());
        model.is_bpe = message.value() == 2;
        break;
      case 24:
        SSM_CHECK(message.value() == 0, "{}.treat_whitespace_as_suffix is not supported", name);
        break;
      case 35:
        model.byte_fallback = message.value() != 0;
        break;
      case 46:
        model.bos_piece = message.data();
        break;
      case 47:
        model.eos_piece = message.data();
        break;
      default:
        break;
    }
  }
}

// The normalization rules are a double array (darts-clone) and the texts its leaves point at, which
// libsentencepiece walks without looking where it steps.
void check_charsmap(std::string_view blob, const std::string& name) {
  if (blob.empty()) return;
  uint32_t trie_bytes = 0;
  SSM_CHECK(blob.size() > 4, "{} is too short", name);
  std::memcpy(&trie_bytes, blob.data(), 4);
  SSM_CHECK(trie_bytes % 4 == 0 && trie_bytes >= 4 && trie_bytes < blob.size() - 4, "{} has a bad size",
            name);
  const std::string_view texts = blob.substr(4 + trie_bytes);
  SSM_CHECK(texts.back() == '\0', "{}: the texts do not end", name);
  std::vector<uint32_t> units(trie_bytes / 4);
  std::memcpy(units.data(), blob.data() + 4, trie_bytes);

  const auto offset_of = [](uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); };
  std::vector<bool> seen(units.size());
  std::vector<uint32_t> open = {0};
  seen[0] = true;
  while (!open.empty()) {
    const uint32_t at = open.back();
    open.pop_back();
    const uint32_t base = at ^ offset_of(units[at]);
    // A step looks at base ^ byte for every byte.
    SSM_CHECK((base | 0xFF) < units.size(), "{}: the trie points outside itself", name);
    if (at != 0 && (units[at] & (1u << 8)) != 0) {
      SSM_CHECK((units[base] & 0x7FFFFFFFu) < texts.size(), "{}: the trie points outside the texts", name);
    }
    for (uint32_t byte = 1; byte < 256; ++byte) {
      const uint32_t next = base ^ byte;
      if ((units[next] & (0x80000000u | 0xFF)) != byte || seen[next]) continue;
      seen[next] = true;
      open.push_back(next);
    }
  }
  for (size_t at = 0; at < texts.size();) {
    const Utf8Step step = utf8_step(texts, at);
    SSM_CHECK(step.code_point >= 0, "{}: the texts are not UTF-8", name);
    at += step.size;
  }
}

void read_normalizer_spec(std::string_view bytes, const std::string& name, SentencePieceModel& model) {
  Message message(bytes, name);
  while (message.next()) {
    if (message.number() == 2) {
      check_charsmap(message.data(), name + ".precompiled_charsmap");
      model.has_charsmap = !message.data().empty();
    }
    if (message.number() == 3) model.add_dummy_prefix = message.value() != 0;
    if (message.number() == 4) model.remove_extra_whitespaces = message.value() != 0;
    if (message.number() == 5) {
      SSM_CHECK(message.value() != 0, "{}.escape_whitespaces false is not supported", name);
    }
  }
}

void check_pieces(const SentencePieceModel& model, const std::string& name) {
  std::unordered_set<std::string_view> seen;
  size_t unknown = 0, normal = 0;
  for (const auto& piece : model.pieces) {
    SSM_CHECK(seen.insert(piece.text).second, "{}: piece \"{}\" is there twice", name, piece.text);
    unknown += piece.type == SentencePieceType::unknown;
    normal += piece.type == SentencePieceType::normal;
  }
  SSM_CHECK(unknown == 1, "{}: {} unknown pieces, not one", name, unknown);
  SSM_CHECK(normal > 0, "{}: no normal piece", name);
}

}  // namespace

SentencePieceModel read_sentencepiece_model(std::string_view bytes, const std::string& name) {
  SentencePieceModel model;
  bool seen[6] = {};
  Message message(bytes, name);
  while (message.next()) {
    const uint64_t number = message.number();
    if (number == 1) {
      SSM_CHECK(model.pieces.size() < kMaxPieces, "{}: more than {} pieces", name, kMaxPieces);
      model.pieces.push_back(
          read_piece(message.data(), fmt::format("{}: pieces[{}]", name, model.pieces.size())));
      continue;
    }
    // Protobuf would merge a message that comes twice.
    SSM_CHECK(number <= 5 && !seen[number], "{}: field {} is unknown or there twice", name, number);
    seen[number] = true;
    if (number == 2) read_trainer_spec(message.data(), name + ": trainer_spec", model);
    if (number == 3) read_normalizer_spec(message.data(), name + ": normalizer_spec", model);
    // 4, the self test, is not given on; a denormalizer is in no model we know.
    SSM_CHECK(number != 5 || message.data().empty(), "{}: a denormalizer is not supported", name);
  }
  check_pieces(model, name);
  return model;
}

}  // namespace ssm::text
