// Learns a byte-level BPE vocabulary: GPT-2's pattern cuts texts into words, a word is its bytes, and the
// most frequent pair of neighbours becomes a token, again and again. Of equally frequent pairs the one with
// the lower left id comes first, then the lower right id; ids are the special tokens, the 256 bytes in the
// order of their characters in GPT-2's alphabet, then the merges as they are made. That is what BpeTrainer of
// the `tokenizers` package does (0.23), and the result is the same, whatever the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ssm::text {

struct BpeTrainerOptions {
  int64_t vocab_size = 0;  // special tokens and bytes included
  int64_t min_frequency = 2;
  std::vector<std::string> special_tokens;  // as they stand in a text
};

struct TrainedBpe {
  std::vector<std::string> tokens;                  // by id, in GPT-2's alphabet
  std::vector<std::pair<int32_t, int32_t>> merges;  // by rank
  size_t special_tokens = 0;                        // the first ids

  std::string tokenizer_json() const;  // the text of a tokenizer.json
};

// Without merges: the 256 bytes, each its own id.
TrainedBpe plain_bytes();

// Distinct words with their counts.
class WordCounts {
 public:
  void add(std::string_view word, int64_t times = 1);
  size_t size() const { return entries_.size(); }
  std::string_view word(size_t i) const {
    return std::string_view(bytes_).substr(entries_[i].begin, entries_[i].size);
  }
  int64_t count(size_t i) const { return entries_[i].count; }

 private:
  struct Entry {
    size_t begin;
    uint32_t size, hash;
    int64_t count;
  };
  void grow();

  std::string bytes_;
  std::vector<Entry> entries_;
  std::vector<uint32_t> slots_;  // entry + 1; 0: free
};

class BpeTrainer {
 public:
  // Throws Error for a size that has no room for the bytes, and for special tokens that are empty or doubled.
  explicit BpeTrainer(BpeTrainerOptions options);

  // Counts the words of these texts, each a text by itself.
  void add(std::span<const std::string_view> texts);
  // The vocabulary, smaller than asked for where no pair is frequent enough. `progress` is told of its size
  // now and then.
  TrainedBpe train(const std::function<void(int64_t)>& progress = {}) const;

 private:
  BpeTrainerOptions options_;
  std::vector<WordCounts> counts_;  // each filled by one thread at a time
};

}  // namespace ssm::text
