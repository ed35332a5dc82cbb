// A file of tokenised documents: memory-mapped, written once, checked on opening like hostile input. Version
// 1, little-endian:
//
//   header   "SSM-TOKS", u32 version, u32 bytes of a token (2 up to 65,536 ids, else 4), zeros up to byte 64
//   tokens   one document after another, zeros up to a multiple of 8
//   offsets  u64 [documents + 1]: where documents begin, in tokens
//   mask     u64 [ceil(tokens / 64)], where not every token is learned: bit i % 64 of word i / 64 is set
//            where token i is a target
//   identity text: what the tokens were made from
//   trailer  u64 tokens, documents, vocabulary, bytes of the identity; u32 1 with a mask, u32 bytes of a
//   token;
//            u64 hash of the trailer so far; zeros up to its byte 56; "SSM-TEND"
//
// Everything but the ids is checked when the file is opened, an id when it is read.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "ssm/core/atomic_file.h"
#include "ssm/io/bytes.h"

namespace ssm::train {

class TokenFile {
 public:
  explicit TokenFile(io::Bytes bytes);  // throws Error naming the file
  static std::shared_ptr<const TokenFile> open(const std::filesystem::path& path);

  int64_t vocab() const { return vocab_; }
  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return documents_; }
  int64_t begin(int64_t document) const;  // of documents() too: tokens()
  int64_t length(int64_t document) const { return begin(document + 1) - begin(document); }

  // ids[0, count) are those from token `begin` on. Throws Error for an id outside the vocabulary.
  void read(int64_t begin, std::span<int32_t> ids) const;
  bool has_mask() const { return mask_ != nullptr; }
  bool learned(int64_t token) const {
    return mask_ == nullptr || (std::to_integer<int>(mask_[token / 8]) >> (token % 8) & 1) != 0;
  }
  std::string_view identity() const { return identity_; }
  const std::string& name() const { return bytes_.name; }

 private:
  void check_offsets() const;

  io::Bytes bytes_;
  int64_t vocab_ = 0, tokens_ = 0, documents_ = 0;
  size_t token_bytes_ = 0;
  const std::byte* ids_ = nullptr;
  const std::byte* offsets_ = nullptr;
  const std::byte* mask_ = nullptr;
  std::string_view identity_;
};

// Writes one, in memory that does not grow with it. Without commit() nothing appears.
class TokenFileWriter {
 public:
  TokenFileWriter(const std::filesystem::path& path, int64_t vocab);
  ~TokenFileWriter();

  // All throw Error naming the path: no space, an id outside the vocabulary.
  void append(std::span<const int32_t> ids, bool learn = true);
  void end_document();
  int64_t tokens() const { return tokens_; }
  void commit(std::string_view identity);

 private:
  class Spill;  // a part of the file that is known late

  void put_token(int32_t id);
  void flush();
  void pad(size_t multiple);

  std::string name_;
  AtomicFile file_;
  std::vector<std::byte> buffer_;
  std::unique_ptr<Spill> offsets_, mask_;
  uint64_t written_ = 0;
  int64_t vocab_, tokens_ = 0, documents_ = 0;
  size_t token_bytes_;
  uint64_t mask_word_ = 0;
  bool all_learned_ = true;
};

}  // namespace ssm::train
