// The pre-tokenizers of tokenizer.json: what cuts a text into the words that BPE sees.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "ssm/text/json_fields.h"

namespace ssm::text {

struct Piece {
  std::string_view text;
  bool byte_level = false;   // each byte stands for its character in GPT-2's alphabet
  bool begins_text = false;  // nothing of the input stands before it
};

// What one encode() needs besides the pieces: room for texts that a step makes, and matchers that are not
// to be shared between threads.
struct SplitScratch {
  struct Entry {
    virtual ~Entry() = default;
  };
  std::deque<std::string> made;
  std::unordered_map<const void*, std::unique_ptr<Entry>> matchers;
};

using PieceSink = std::function<void(const Piece&)>;

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  // May give empty pieces.
  virtual void split(const Piece& piece, SplitScratch& scratch, const PieceSink& sink) const = 0;
};

// One after the other; none gives the text as it is.
class PreTokenizers {
 public:
  PreTokenizers() = default;
  // Throws Error naming the field of what it does not know.
  PreTokenizers(const nlohmann::json& json, const std::string& name);

  void split(const Piece& piece, SplitScratch& scratch, const PieceSink& sink) const;
  bool byte_level() const { return byte_level_; }

 private:
  void parse(const nlohmann::json& json, const std::string& name);
  void run(size_t step, const Piece& piece, SplitScratch& scratch, const PieceSink& sink) const;

  std::vector<std::unique_ptr<PreTokenizer>> steps_;
  bool byte_level_ = false;
};

// What becomes of the matches of a Split; see the `tokenizers` package's SplitDelimiterBehavior.
enum class SplitBehavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

// Turns matches and what lies between them, told in order, into pieces.
class MatchSplitter {
 public:
  MatchSplitter(const Piece& piece, SplitBehavior behavior, bool invert, const PieceSink& sink)
      : piece_(piece), behavior_(behavior), invert_(invert), sink_(sink) {}
  void match(size_t begin, size_t end);  // the text between two matches is told by itself
  void finish();

 private:
  void event(size_t end, bool is_match);
  void emit_until(size_t end);

  const Piece piece_;
  const SplitBehavior behavior_;
  const bool invert_;
  const PieceSink& sink_;
  size_t told_ = 0;       // events reach to here
  size_t emitted_ = 0;    // pieces reach to here
  bool waiting_ = false;  // [emitted_, told_) waits for what follows
  bool previous_match_ = false;
};

SplitBehavior parse_split_behavior(const JsonObject& object, const char* field);

// A Split by an ICU regular expression that matches what the reference's (Oniguruma) would: \s, \S, \w, \h
// mean what they mean there. Throws Error for syntax whose meaning differs between the two.
std::unique_ptr<PreTokenizer> make_regex_split(const std::string& pattern, SplitBehavior behavior,
                                               bool invert, const std::string& name);

}  // namespace ssm::text
