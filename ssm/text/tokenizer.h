// Tokenizer: text to ids and back. Byte-level BPE from a tokenizer.json, SentencePiece from a
// tokenizer.model.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ssm::text {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Every byte of `text` is encoded, ill-formed UTF-8 too where the vocabulary has a token for every byte; no
  // token is added; special tokens in the text are recognised. Where a vocabulary lacks something, the
  // reference's way is followed: unk_token, or nothing.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  // Special tokens are kept. Ids the vocabulary lacks throw Error naming the id. The result is the exact
  // bytes, which may end inside a character; see StreamDecoder.
  std::string decode(std::span<const int32_t> ids) const;

  virtual int64_t size() const = 0;  // ids are in [0, size)
  // The id of a token as the vocabulary spells it ("Ġthe", "▁the"), or of an added token.
  virtual std::optional<int32_t> find(std::string_view token) const = 0;
  virtual std::optional<int32_t> bos() const = 0;
  virtual std::optional<int32_t> eos() const = 0;

  // The bytes of one token inside a text; decode() is these in order, less dropped spaces. Throws Error.
  virtual std::string_view bytes_of(int32_t id) const = 0;
  // Some tokenizers put a space before a text, and before the text behind a special token, that is no part of
  // it: decoding drops one space there.
  virtual bool drops_first_space() const { return false; }
  virtual bool drops_space_after(int32_t) const { return false; }
};

// `path` is a tokenizer.json, a SentencePiece model, or a folder that holds one (tokenizer_config.json beside
// it names the special tokens). Throws Error naming the file and the field; a folder without any: nullptr.
std::unique_ptr<Tokenizer> open_tokenizer(const std::filesystem::path& path);

// A tokenizer.json in memory; `name` is what errors call it. It has no bos and eos.
std::unique_ptr<Tokenizer> parse_tokenizer_json(std::string_view json, std::string_view name);

// A SentencePiece model in memory.
std::unique_ptr<Tokenizer> parse_sentencepiece(std::string_view model, std::string_view name);

// Turns a stream of ids into text pieces that never end inside a UTF-8 character. The stream goes on from a
// text that is there already: a space before its first word is kept. If nothing stands before it, say so:
// with `at_start` the pieces together are what decode() gives, but for ill-formed bytes.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool at_start = false)
      : tokenizer_(tokenizer), drop_space_(at_start && tokenizer.drops_first_space()) {}
  std::string push(int32_t id);  // what can be printed now; bytes that can form no character become U+FFFD
  std::string finish();          // the rest; an unfinished character becomes U+FFFD

 private:
  const Tokenizer& tokenizer_;
  bool drop_space_;
  std::string pending_;  // the beginning of a character: at most three bytes between two calls
};

}  // namespace ssm::text
