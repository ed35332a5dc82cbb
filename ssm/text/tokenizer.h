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

  // Every byte of `text` is encoded; no token is added; special tokens in the text are recognised.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  // Special tokens are kept. Ids the vocabulary lacks throw Error naming the id. The result is the exact
  // bytes, which may end inside a character; see StreamDecoder.
  virtual std::string decode(std::span<const int32_t> ids) const = 0;

  virtual int64_t size() const = 0;  // ids are in [0, size)
  virtual std::optional<int32_t> find(std::string_view token) const = 0;
  virtual std::optional<int32_t> bos() const = 0;
  virtual std::optional<int32_t> eos() const = 0;
};

// `path` is a tokenizer.json, a SentencePiece model, or a folder that holds one (tokenizer_config.json beside
// it names the special tokens). Throws Error naming the file and the field; a folder without any: nullptr.
std::unique_ptr<Tokenizer> open_tokenizer(const std::filesystem::path& path);

// Turns a stream of ids into text pieces that never end inside a UTF-8 character.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  std::string push(int32_t id);  // what can be printed now
  std::string finish();          // the rest; bytes that form no character become U+FFFD

 private:
  const Tokenizer& tokenizer_;
  std::vector<int32_t> ids_;  // since the last boundary
  size_t printed_ = 0;        // bytes of decode(ids_) already given out
};

}  // namespace ssm::text
