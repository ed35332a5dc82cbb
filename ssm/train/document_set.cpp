#include "ssm/train/document_set.h"

#include <algorithm>
#include <cmath>

#include "ssm/core/error.h"
#include "ssm/text/vocab.h"

namespace ssm::train {
namespace {

constexpr int64_t kFewDocuments = 20;
constexpr uint64_t kHoldOutStream = 0x686F6C64;  // apart from the streams of epochs

int64_t part_of(int64_t n, double fraction) {
  return static_cast<int64_t>(std::llround(static_cast<double>(n) * fraction));
}

}  // namespace

DocumentSet::DocumentSet(std::shared_ptr<const TokenFile> file)
    : file_(std::move(file)), size_(file_->documents()) {}

TokenRange DocumentSet::operator[](int64_t i) const {
  const int64_t document = drawn_ ? order_(first_ + i) : first_ + i;
  const int64_t begin = file_->begin(document), length = file_->length(document);
  return {begin + part_of(length, from_), begin + part_of(length, to_)};
}

int64_t DocumentSet::tokens() const {
  int64_t total = 0;
  for (int64_t i = 0; i < size_; ++i) total += (*this)[i].size();
  return total;
}

uint64_t DocumentSet::fingerprint() const {
  return text::hash_bytes(fmt::format("{}|{}|{}|{}|{}|{}|{}", file_->identity(), file_->tokens(), first_,
                                      size_, drawn_ ? seed_ : 0, from_, to_));
}

std::pair<DocumentSet, DocumentSet> hold_out(std::shared_ptr<const TokenFile> file, double fraction,
                                             uint64_t seed) {
  SSM_CHECK(fraction > 0 && fraction < 1, "a fraction of {} cannot be held out for validation", fraction);
  DocumentSet train(file), held(file);
  if (file->documents() < kFewDocuments) {
    train.to_ = held.from_ = 1 - fraction;
    return {train, held};
  }
  const int64_t n = file->documents();
  const int64_t count = std::clamp<int64_t>(part_of(n, fraction), 1, n - 1);
  train.order_ = held.order_ = Permutation(n, seed, kHoldOutStream);
  train.drawn_ = held.drawn_ = true;
  train.seed_ = held.seed_ = seed;
  held.size_ = count;
  train.first_ = count;
  train.size_ = n - count;
  return {train, held};
}

}  // namespace ssm::train
