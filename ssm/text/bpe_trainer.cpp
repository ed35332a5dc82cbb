#include "ssm/text/bpe_trainer.h"

#include <algorithm>
#include <numeric>
#include <queue>
#include <unordered_map>

#include "ssm/core/error.h"
#include "ssm/core/parallel.h"
#include "ssm/text/bpe_json.h"
#include "ssm/text/gpt2_scanner.h"
#include "ssm/text/unicode.h"
#include "ssm/text/utf8.h"
#include "ssm/text/vocab.h"

namespace ssm::text {
namespace {

constexpr int64_t kBytes = 256;
constexpr int64_t kLargestVocab = int64_t{1} << 24;
constexpr int64_t kProgressEvery = 256;  // merges

using Pair = std::pair<int32_t, int32_t>;

// Pairs with how often they occur and the words they were found in since they were last queued.
class PairTable {
 public:
  struct Entry {
    Pair pair;
    int64_t count = 0;
    std::vector<uint32_t> words;  // ascending
  };

  PairTable() : slots_(1 << 12) {}
  Entry& operator[](size_t i) { return entries_[i]; }

  size_t index_of(Pair pair) {
    size_t slot = slot_of(pair);
    for (; slots_[slot] != 0; slot = (slot + 1) & (slots_.size() - 1)) {
      if (entries_[slots_[slot] - 1].pair == pair) return slots_[slot] - 1;
    }
    entries_.push_back({pair, 0, {}});
    slots_[slot] = static_cast<uint32_t>(entries_.size());
    if (entries_.size() * 2 > slots_.size()) grow();
    return entries_.size() - 1;
  }

  void add(Pair pair, int64_t count) { entries_[index_of(pair)].count += count; }
  // The same for a pair that is new in `word`.
  void found(Pair pair, int64_t count, uint32_t word) {
    const size_t i = index_of(pair);
    Entry& entry = entries_[i];
    entry.count += count;
    if (entry.words.empty()) fresh_.push_back(static_cast<uint32_t>(i));
    if (entry.words.empty() || entry.words.back() != word) entry.words.push_back(word);
  }
  // Entries with words since the last call.
  std::vector<uint32_t> take_fresh() { return std::exchange(fresh_, {}); }

 private:
  size_t slot_of(Pair pair) const {
    const uint64_t key =
        (static_cast<uint64_t>(static_cast<uint32_t>(pair.first)) << 32) | static_cast<uint32_t>(pair.second);
    const uint64_t mixed = key * 0x9E3779B97F4A7C15u;
    return static_cast<size_t>(mixed ^ (mixed >> 29)) & (slots_.size() - 1);
  }
  void grow() {
    slots_.assign(slots_.size() * 2, 0);
    for (size_t i = 0; i < entries_.size(); ++i) {
      size_t slot = slot_of(entries_[i].pair);
      while (slots_[slot] != 0) slot = (slot + 1) & (slots_.size() - 1);
      slots_[slot] = static_cast<uint32_t>(i + 1);
    }
  }

  std::vector<Entry> entries_;
  std::vector<uint32_t> slots_;  // entry + 1; 0: free
  std::vector<uint32_t> fresh_;
};

// A pair in the queue, its words in `positions_`. As in the reference a pair may stand in it more than once,
// each time with the words it was found in since, and its count there may be out of date.
struct Candidate {
  int64_t count;
  Pair pair;
  size_t positions;

  bool operator<(const Candidate& other) const {  // of the queue's order: the largest is taken first
    return count != other.count ? count < other.count : pair > other.pair;
  }
};

class Merging {
 public:
  Merging(const BpeTrainerOptions& options, const WordCounts& words) : options_(options) {
    for (const std::string& token : options.special_tokens) id_of(token);
    result_.special_tokens = result_.tokens.size();
    std::array<int32_t, 256> byte_ids{};
    std::vector<int> order(256);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [](int a, int b) {
      return kByteToChar[static_cast<size_t>(a)] < kByteToChar[static_cast<size_t>(b)];
    });
    for (const int byte : order) {
      std::string spelled;
      append_utf8(kByteToChar[static_cast<size_t>(byte)], spelled);
      byte_ids[static_cast<size_t>(byte)] = id_of(spelled);
    }
    for (size_t w = 0; w < words.size(); ++w) {
      begins_.push_back(symbols_.size());
      for (const char c : words.word(w)) symbols_.push_back(byte_ids[static_cast<uint8_t>(c)]);
      sizes_.push_back(static_cast<uint32_t>(words.word(w).size()));
      counts_.push_back(words.count(w));
    }
    for (uint32_t w = 0; w < sizes_.size(); ++w) {
      const int32_t* s = &symbols_[begins_[w]];
      for (uint32_t i = 0; i + 1 < sizes_[w]; ++i) pairs_.found({s[i], s[i + 1]}, counts_[w], w);
    }
    queue_fresh();
  }

  TrainedBpe run(const std::function<void(int64_t)>& progress) {
    while (std::ssize(ids_) < options_.vocab_size && !queue_.empty()) {
      Candidate best = queue_.top();
      queue_.pop();
      const int64_t count = pairs_[pairs_.index_of(best.pair)].count;
      if (best.count != count) {
        best.count = count;
        queue_.push(best);
        continue;
      }
      if (count < 1 || count < options_.min_frequency) break;
      merge(best);
      if (progress && std::ssize(merges_) % kProgressEvery == 0) progress(std::ssize(ids_));
    }
    // Of a pair that was merged twice the later rank counts.
    std::unordered_map<int64_t, size_t> last;
    const auto key = [](Pair pair) { return (int64_t{pair.first} << 32) | pair.second; };
    for (size_t rank = 0; rank < merges_.size(); ++rank) last[key(merges_[rank])] = rank;
    for (size_t rank = 0; rank < merges_.size(); ++rank) {
      if (last[key(merges_[rank])] == rank) result_.merges.push_back(merges_[rank]);
    }
    return std::move(result_);
  }

 private:
  // The id of a token, a new one where it has none: two ways to merge may spell the same.
  int32_t id_of(const std::string& token) {
    const auto [it, fresh] = ids_.emplace(token, static_cast<int32_t>(result_.tokens.size()));
    if (fresh) result_.tokens.push_back(token);
    return it->second;
  }

  void queue_fresh() {
    for (const uint32_t i : pairs_.take_fresh()) {
      PairTable::Entry& entry = pairs_[i];
      std::vector<uint32_t> words = std::exchange(entry.words, {});
      if (entry.count <= 0) continue;
      queue_.push({entry.count, entry.pair, positions_.size()});
      positions_.push_back(std::move(words));
    }
  }

  void merge(const Candidate& best) {
    const auto [left, right] = best.pair;
    const int32_t merged =
        id_of(result_.tokens[static_cast<size_t>(left)] + result_.tokens[static_cast<size_t>(right)]);
    merges_.push_back(best.pair);
    for (const uint32_t word : std::exchange(positions_[best.positions], {}))
      merge_in(word, left, right, merged);
    queue_fresh();
  }

  // Left to right; the pair's own count stays as it is, which is how the reference does it.
  void merge_in(uint32_t word, int32_t left, int32_t right, int32_t merged) {
    int32_t* s = &symbols_[begins_[word]];
    const uint32_t size = sizes_[word];
    const int64_t count = counts_[word];
    uint32_t kept = 0;
    for (uint32_t i = 0; i < size; ++i) {
      if (s[i] != left || i + 1 == size || s[i + 1] != right) {
        s[kept++] = s[i];
        continue;
      }
      ++i;
      if (kept > 0) {
        pairs_.add({s[kept - 1], left}, -count);
        pairs_.found({s[kept - 1], merged}, count, word);
      }
      if (i + 1 < size) {
        pairs_.add({right, s[i + 1]}, -count);
        pairs_.found({merged, s[i + 1]}, count, word);
      }
      s[kept++] = merged;
    }
    sizes_[word] = kept;
  }

  const BpeTrainerOptions& options_;
  TrainedBpe result_;
  std::unordered_map<std::string, int32_t> ids_;
  std::vector<Pair> merges_;
  std::vector<int32_t> symbols_;  // of all words, one after another
  std::vector<size_t> begins_;
  std::vector<uint32_t> sizes_;
  std::vector<int64_t> counts_;
  PairTable pairs_;
  std::priority_queue<Candidate> queue_;
  std::vector<std::vector<uint32_t>> positions_;
};

}  // namespace

void WordCounts::add(std::string_view word, int64_t times) {
  if (entries_.size() * 2 >= slots_.size()) grow();
  const auto hash = static_cast<uint32_t>(hash_bytes(word));
  size_t slot = hash & (slots_.size() - 1);
  for (; slots_[slot] != 0; slot = (slot + 1) & (slots_.size() - 1)) {
    Entry& entry = entries_[slots_[slot] - 1];
    if (entry.hash == hash && this->word(slots_[slot] - 1) == word) {
      entry.count += times;
      return;
    }
  }
  entries_.push_back({bytes_.size(), static_cast<uint32_t>(word.size()), hash, times});
  bytes_ += word;
  slots_[slot] = static_cast<uint32_t>(entries_.size());
}

void WordCounts::grow() {
  slots_.assign(std::max<size_t>(1 << 10, slots_.size() * 2), 0);
  for (size_t i = 0; i < entries_.size(); ++i) {
    size_t slot = entries_[i].hash & (slots_.size() - 1);
    while (slots_[slot] != 0) slot = (slot + 1) & (slots_.size() - 1);
    slots_[slot] = static_cast<uint32_t>(i + 1);
  }
}

BpeTrainer::BpeTrainer(BpeTrainerOptions options)
    : options_(std::move(options)), counts_(static_cast<size_t>(num_threads())) {
  const int64_t least = kBytes + std::ssize(options_.special_tokens);
  SSM_CHECK(options_.vocab_size >= least && options_.vocab_size <= kLargestVocab,
            "a vocabulary of {} tokens: at least {} (256 bytes, {} special tokens) and at most {}",
            options_.vocab_size, least, options_.special_tokens.size(), kLargestVocab);
  SSM_CHECK(options_.min_frequency >= 1, "a least frequency of {}", options_.min_frequency);
  for (size_t i = 0; i < options_.special_tokens.size(); ++i) {
    const std::string& token = options_.special_tokens[i];
    SSM_CHECK(token.size() > 1, "special token \"{}\" is shorter than two bytes", token);
    SSM_CHECK(is_utf8(token), "a special token is not UTF-8");
    SSM_CHECK(std::count(options_.special_tokens.begin(), options_.special_tokens.end(), token) == 1,
              "special token \"{}\" is named twice", token);
  }
}

void BpeTrainer::add(std::span<const std::string_view> texts) {
  const auto stride = counts_.size();
  parallel_for(static_cast<int64_t>(stride), 1, [&](int64_t begin, int64_t end) {
    for (auto table = static_cast<size_t>(begin); table < static_cast<size_t>(end); ++table) {
      for (size_t i = table; i < texts.size(); i += stride) {
        const std::string_view text = texts[i];
        for (size_t at = 0; at < text.size();) {
          const size_t match_end = gpt2_match_end(text, at);
          counts_[table].add(text.substr(at, match_end - at));
          at = match_end;
        }
      }
    }
  });
}

TrainedBpe BpeTrainer::train(const std::function<void(int64_t)>& progress) const {
  WordCounts all = counts_[0];
  for (size_t table = 1; table < counts_.size(); ++table) {
    for (size_t i = 0; i < counts_[table].size(); ++i)
      all.add(counts_[table].word(i), counts_[table].count(i));
  }
  return Merging(options_, all).run(progress);
}

TrainedBpe plain_bytes() {
  TrainedBpe bytes;
  for (const uint16_t character : kByteToChar) append_utf8(character, bytes.tokens.emplace_back());
  return bytes;
}

std::string TrainedBpe::tokenizer_json() const {
  using nlohmann::ordered_json;
  ordered_json json = bpe_json(nullptr, byte_level_json(), false);
  for (size_t id = 0; id < special_tokens; ++id)
    json["added_tokens"].push_back(added_token_json(tokens[id], id, true));
  ordered_json::object_t vocab;
  for (size_t id = 0; id < tokens.size(); ++id) vocab.emplace_back(tokens[id], id);
  ordered_json pairs = ordered_json::array();
  for (const auto& [left, right] : merges)
    pairs.push_back({tokens[static_cast<size_t>(left)], tokens[static_cast<size_t>(right)]});
  return bpe_json_text(std::move(json), std::move(vocab), std::move(pairs));
}

}  // namespace ssm::text
