// Which documents of a TokenFile are trained on, and which are held out for validation. Nothing is stored: a
// document of a set is found by computing.
#pragma once

#include <memory>
#include <utility>

#include "ssm/train/permutation.h"
#include "ssm/train/token_file.h"

namespace ssm::train {

// Tokens [begin, end) of the file.
struct TokenRange {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};

class DocumentSet {
 public:
  explicit DocumentSet(std::shared_ptr<const TokenFile> file);  // every document

  int64_t size() const { return size_; }
  TokenRange operator[](int64_t i) const;  // i in [0, size())
  int64_t tokens() const;
  const TokenFile& file() const { return *file_; }
  // Equal for equal sets of equal files.
  uint64_t fingerprint() const;

 private:
  friend std::pair<DocumentSet, DocumentSet> hold_out(std::shared_ptr<const TokenFile>, double, uint64_t);

  std::shared_ptr<const TokenFile> file_;
  int64_t first_ = 0, size_ = 0;  // documents order_(first_ + i), or first_ + i where nothing is drawn
  bool drawn_ = false;
  uint64_t seed_ = 0;
  Permutation order_;
  double from_ = 0, to_ = 1;  // the stretch of each document that belongs to the set
};

// The documents to train on, and `fraction` of them (in (0, 1), at least one) held out, drawn by the seed. Of
// fewer than 20 documents the last `fraction` of each is held out instead. Throws Error.
std::pair<DocumentSet, DocumentSet> hold_out(std::shared_ptr<const TokenFile> file, double fraction,
                                             uint64_t seed);

}  // namespace ssm::train
