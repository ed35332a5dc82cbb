#include "ssm/text/sentencepiece_bpe.h"

#include <algorithm>

#include "ssm/text/utf8.h"

namespace ssm::text {
namespace {

using Type = SentencePieceType;

constexpr size_t kLongestPiece = 128;  // bytes; all places where it may be cut are looked at, to its ends

// Of each normal piece, how many distinct scores of others are higher than its own.
std::vector<uint32_t> ranks_of(const SentencePieceModel& model) {
  std::vector<size_t> order;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    if (model.pieces[i].type == Type::normal) order.push_back(i);
  }
  const auto score = [&](size_t i) { return model.pieces[i].score; };
  const auto higher = [&](size_t a, size_t b) { return score(a) > score(b); };
  if (!std::is_sorted(order.begin(), order.end(), higher)) std::sort(order.begin(), order.end(), higher);
  std::vector<uint32_t> ranks(model.pieces.size());
  uint32_t rank = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    if (i > 0 && higher(order[i - 1], order[i])) ++rank;
    ranks[order[i]] = rank;
  }
  return ranks;
}

// All pieces, in order; nothing where a piece is there twice.
std::optional<Vocab> vocab_of(const SentencePieceModel& model) {
  Vocab vocab;
  for (size_t i = 0; i < model.pieces.size(); ++i) vocab.add(model.pieces[i].text, static_cast<int32_t>(i));
  if (vocab.index()) return std::nullopt;
  return vocab;
}

// Whether every character of every normal piece is a normal piece.
bool has_characters(const SentencePieceModel& model, const Vocab& vocab) {
  constexpr int32_t kRemembered = 0x10000;
  std::vector<bool> known(kRemembered);
  for (const auto& [text, type, score] : model.pieces) {
    if (type != Type::normal) continue;
    for (size_t at = 0; at < text.size();) {
      const auto [c, size] = utf8_step(text, at);
      const bool remembered = c < kRemembered && known[static_cast<size_t>(c)];
      if (!remembered) {
        const auto entry = vocab.find_entry(std::string_view(text).substr(at, size));
        if (!entry || model.pieces[*entry].type != Type::normal) return false;
        if (c < kRemembered) known[static_cast<size_t>(c)] = true;
      }
      at += size;
    }
  }
  return true;
}

// Of every two normal pieces that spell a third.
MergeTable merges_of(const SentencePieceModel& model, const Vocab& vocab) {
  const auto find = [&](std::string_view text) -> std::optional<int32_t> {
    const auto entry = vocab.find_entry(text);
    if (!entry || model.pieces[*entry].type != Type::normal) return std::nullopt;
    return static_cast<int32_t>(*entry);
  };
  struct Made {
    int32_t left, right;
    Merge merge;
  };
  std::vector<Made> made;
  const std::vector<uint32_t> ranks = ranks_of(model);
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    if (model.pieces[i].type != Type::normal) continue;
    const std::string_view text = model.pieces[i].text;
    for (size_t at = utf8_step(text, 0).size; at < text.size(); at += utf8_step(text, at).size) {
      const auto left = find(text.substr(0, at));
      const auto right = left ? find(text.substr(at)) : std::nullopt;
      if (right) made.push_back({*left, *right, {ranks[i], static_cast<int32_t>(i)}});
    }
  }
  MergeTable merges;
  merges.reserve(made.size());
  for (const Made& m : made) merges.add(m.left, m.right, m.merge);
  return merges;
}

}  // namespace

std::optional<SentencePieceBpe> SentencePieceBpe::of(const SentencePieceModel& model) {
  if (!model.is_bpe || !model.byte_fallback) return std::nullopt;
  AddedTokenFinder user_defined;
  size_t bytes = 0;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const auto& [text, type, score] = model.pieces[i];
    if (type == Type::unused || text.size() > kLongestPiece) return std::nullopt;
    // A character that is a control piece is found as that by the library.
    const bool control = type == Type::control || type == Type::unknown;
    if (control && utf8_step(text, 0).size == text.size()) return std::nullopt;
    const AddedToken token{.content = text, .id = static_cast<int32_t>(i)};
    if (type == Type::user_defined && !user_defined.add(text, token)) return std::nullopt;
    bytes += type == Type::byte;
  }
  std::optional<Vocab> vocab = vocab_of(model);
  if (bytes != 256 || !vocab || !has_characters(model, *vocab)) return std::nullopt;
  MergeTable merges = merges_of(model, *vocab);
  return SentencePieceBpe(std::move(user_defined),
                          Bpe(std::move(*vocab), std::move(merges), {.unk = {}, .byte_fallback = true}));
}

void SentencePieceBpe::encode(std::string_view word, std::vector<int32_t>& out) const {
  user_defined_.split(word, [&](std::string_view part, std::optional<int32_t> id) {
    id ? out.push_back(*id) : bpe_.encode(part, false, out);
  });
}

}  // namespace ssm::text
