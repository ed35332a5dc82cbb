#include "ssm/text/pre_tokenizer.h"

#include "ssm/text/gpt2_scanner.h"
#include "ssm/text/unicode.h"
#include "ssm/text/utf8.h"

namespace ssm::text {
namespace {

constexpr size_t kMaxSteps = 32;

Piece part_of(const Piece& piece, size_t begin, size_t end) {
  return {piece.text.substr(begin, end - begin), piece.byte_level, piece.begins_text && begin == 0};
}

Utf8Step step_of(const Piece& piece, size_t at) {
  if (piece.byte_level) return {kByteToChar[static_cast<uint8_t>(piece.text[at])], 1};
  return utf8_step(piece.text, at);
}

void split_by_gpt2(const Piece& piece, const PieceSink& sink) {
  for (size_t at = 0; at < piece.text.size();) {
    const size_t end = gpt2_match_end(piece.text, at);
    sink(part_of(piece, at, end));
    at = end;
  }
}

class ByteLevel final : public PreTokenizer {
 public:
  ByteLevel(bool add_prefix_space, bool use_regex)
      : add_prefix_space_(add_prefix_space), use_regex_(use_regex) {}

  void split(const Piece& piece, SplitScratch& scratch, const PieceSink& sink) const override {
    Piece text = piece;
    if (add_prefix_space_ && !text.text.starts_with(' ')) {
      text.text = scratch.made.emplace_back(1, ' ').append(piece.text);
    }
    text.byte_level = true;
    if (use_regex_) {
      split_by_gpt2(text, sink);
    } else {
      sink(text);
    }
  }

 private:
  bool add_prefix_space_, use_regex_;
};

// Digits and Punctuation: every character of a class is a match.
template <bool (*is_match)(int32_t)>
class ClassSplit final : public PreTokenizer {
 public:
  explicit ClassSplit(SplitBehavior behavior) : behavior_(behavior) {}

  void split(const Piece& piece, SplitScratch&, const PieceSink& sink) const override {
    MatchSplitter splitter(piece, behavior_, false, sink);
    for (size_t at = 0; at < piece.text.size();) {
      const Utf8Step step = step_of(piece, at);
      if (is_match(step.code_point)) splitter.match(at, at + step.size);
      at += step.size;
    }
    splitter.finish();
  }

 private:
  SplitBehavior behavior_;
};

// The GPT-2 pattern written out in a Split.
class Gpt2Split final : public PreTokenizer {
 public:
  Gpt2Split(SplitBehavior behavior, bool invert) : behavior_(behavior), invert_(invert) {}

  void split(const Piece& piece, SplitScratch&, const PieceSink& sink) const override {
    MatchSplitter splitter(piece, behavior_, invert_, sink);
    for (size_t at = 0; at < piece.text.size();) {
      const size_t end = gpt2_match_end(piece.text, at);
      splitter.match(at, end);
      at = end;
    }
    splitter.finish();
  }

 private:
  SplitBehavior behavior_;
  bool invert_;
};

class StringSplit final : public PreTokenizer {
 public:
  StringSplit(std::string pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  void split(const Piece& piece, SplitScratch&, const PieceSink& sink) const override {
    const std::string pattern = piece.byte_level ? bytes_of(pattern_) : pattern_;
    MatchSplitter splitter(piece, behavior_, invert_, sink);
    for (size_t at = 0; !pattern.empty() && (at = piece.text.find(pattern, at)) != std::string_view::npos;) {
      splitter.match(at, at + pattern.size());
      at += pattern.size();
    }
    splitter.finish();
  }

 private:
  // The bytes that GPT-2's alphabet spells so; empty, matching nothing, if it cannot.
  static std::string bytes_of(std::string_view spelling) {
    std::string bytes;
    for (size_t at = 0; at < spelling.size();) {
      const Utf8Step step = utf8_step(spelling, at);
      const auto byte = byte_of_char(step.code_point);
      if (!byte) return {};
      bytes.push_back(static_cast<char>(*byte));
      at += step.size;
    }
    return bytes;
  }

  std::string pattern_;
  SplitBehavior behavior_;
  bool invert_;
};

class Metaspace final : public PreTokenizer {
 public:
  enum class Prepend { always, first, never };
  Metaspace(std::string replacement, Prepend prepend, bool cut)
      : replacement_(std::move(replacement)), prepend_(prepend), cut_(cut) {}

  void split(const Piece& piece, SplitScratch& scratch, const PieceSink& sink) const override {
    std::string& text = scratch.made.emplace_back();
    for (const char c : piece.text) c == ' ' ? text.append(replacement_) : text.append(1, c);
    const bool wanted = prepend_ == Prepend::always || (prepend_ == Prepend::first && piece.begins_text);
    if (wanted && !text.starts_with(replacement_)) text.insert(0, replacement_);
    const Piece whole{text, false, piece.begins_text};
    if (cut_) {
      StringSplit(replacement_, SplitBehavior::merged_with_next, false).split(whole, scratch, sink);
    } else {
      sink(whole);
    }
  }

 private:
  std::string replacement_;
  Prepend prepend_;
  bool cut_;
};

std::unique_ptr<PreTokenizer> parse_split(const JsonObject& object, bool after_byte_level) {
  const JsonObject pattern(object.at("pattern"), object.name_of("pattern"));
  const SplitBehavior behavior = parse_split_behavior(object, "behavior");
  const bool invert = object.boolean("invert", false);
  if (pattern.find("Regex")) {
    const std::string& regex = pattern.string("Regex");
    if (regex == kGpt2Pattern && !after_byte_level) return std::make_unique<Gpt2Split>(behavior, invert);
    return make_regex_split(regex, behavior, invert, pattern.name_of("Regex"));
  }
  const std::string& string = pattern.string("String");
  SSM_CHECK(!string.empty(), "{} is empty", pattern.name_of("String"));
  return std::make_unique<StringSplit>(string, behavior, invert);
}

std::unique_ptr<PreTokenizer> parse_metaspace(const JsonObject& object) {
  const std::string& replacement = object.string("replacement");
  SSM_CHECK(!replacement.empty() && utf8_step(replacement, 0).size == replacement.size(),
            "{} is not one character", object.name_of("replacement"));
  using enum Metaspace::Prepend;
  auto prepend = object.boolean("add_prefix_space", true) ? always : never;
  if (object.find("prepend_scheme")) {
    const std::string& scheme = object.string("prepend_scheme");
    SSM_CHECK(scheme == "always" || scheme == "first" || scheme == "never", "{} \"{}\" is not supported",
              object.name_of("prepend_scheme"), scheme);
    prepend = scheme == "always" ? always : scheme == "first" ? first : never;
  }
  return std::make_unique<Metaspace>(replacement, prepend, object.boolean("split", true));
}

}  // namespace

SplitBehavior parse_split_behavior(const JsonObject& object, const char* field) {
  const std::string& name = object.string(field);
  if (name == "Removed") return SplitBehavior::removed;
  if (name == "Isolated") return SplitBehavior::isolated;
  if (name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
  if (name == "MergedWithNext") return SplitBehavior::merged_with_next;
  if (name == "Contiguous") return SplitBehavior::contiguous;
  fail("{} \"{}\" is not supported", object.name_of(field), name);
}

PreTokenizers::PreTokenizers(const nlohmann::json& json, const std::string& name) {
  if (!json.is_null()) parse(json, name);
}

void PreTokenizers::parse(const nlohmann::json& json, const std::string& name) {
  const JsonObject object(json, name);
  const std::string& type = object.string("type");
  if (type == "Sequence") {
    size_t i = 0;
    for (const auto& part : object.array("pretokenizers")) {
      parse(part, fmt::format("{}.pretokenizers[{}]", name, i++));
    }
    return;
  }
  SSM_CHECK(steps_.size() < kMaxSteps, "{}: more than {} pre-tokenizers", name, kMaxSteps);
  if (type == "ByteLevel") {
    SSM_CHECK(!byte_level_, "{}: a second ByteLevel is not supported", name);
    byte_level_ = true;
    steps_.push_back(std::make_unique<ByteLevel>(object.boolean("add_prefix_space", true),
                                                 object.boolean("use_regex", true)));
  } else if (type == "Split") {
    steps_.push_back(parse_split(object, byte_level_));
  } else if (type == "Digits") {
    const bool single = object.boolean("individual_digits", false);
    steps_.push_back(std::make_unique<ClassSplit<is_number>>(single ? SplitBehavior::isolated
                                                                    : SplitBehavior::contiguous));
  } else if (type == "Punctuation") {
    steps_.push_back(std::make_unique<ClassSplit<is_punctuation>>(
        object.find("behavior") ? parse_split_behavior(object, "behavior") : SplitBehavior::isolated));
  } else if (type == "Metaspace") {
    SSM_CHECK(!byte_level_, "{}: a Metaspace after a ByteLevel is not supported", name);
    steps_.push_back(parse_metaspace(object));
  } else {
    fail("{}.type \"{}\" is not supported", name, type);
  }
}

void PreTokenizers::split(const Piece& piece, SplitScratch& scratch, const PieceSink& sink) const {
  run(0, piece, scratch, sink);
}

void PreTokenizers::run(size_t step, const Piece& piece, SplitScratch& scratch, const PieceSink& sink) const {
  if (piece.text.empty()) return;
  if (step == steps_.size()) return sink(piece);
  if (step + 1 == steps_.size()) return steps_[step]->split(piece, scratch, sink);
  steps_[step]->split(piece, scratch, [&](const Piece& part) { run(step + 1, part, scratch, sink); });
}

}  // namespace ssm::text
