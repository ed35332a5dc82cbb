#include "ssm/text/bpe.h"

#include <algorithm>
#include <functional>
#include <queue>

#include "ssm/core/error.h"
#include "ssm/text/unicode.h"
#include "ssm/text/utf8.h"

namespace ssm::text {
namespace {

// Up to here looking at every pair for each merge is faster than a heap.
constexpr size_t kShortWord = 48;
constexpr uint32_t kNoMerge = ~uint32_t{0};

std::string byte_level_spelling(std::string_view word) {
  std::string spelling;
  spelling.reserve(word.size() * 2);
  for (const char c : word) append_utf8(kByteToChar[static_cast<uint8_t>(c)], spelling);
  return spelling;
}

}  // namespace

Bpe::Bpe(Vocab vocab, MergeTable merges, const Options& options)
    : vocab_(std::move(vocab)), merges_(std::move(merges)), options_(options) {
  for (size_t b = 0; b < 256; ++b) {
    const char byte = static_cast<char>(b);
    byte_symbol_[b] = vocab_.find(byte_level_spelling({&byte, 1})).value_or(-1);
    byte_fallback_[b] = vocab_.find(fmt::format("<0x{:02X}>", b)).value_or(-1);
  }
}

void Bpe::encode(std::string_view word, bool byte_level, std::vector<int32_t>& out) const {
  SSM_CHECK(word.size() < kNoMerge, "a word of {} bytes is too long to tokenize", word.size());
  if (options_.ignore_merges) {
    const auto id = vocab_.find(byte_level ? byte_level_spelling(word) : word);
    if (id) return out.push_back(*id);
  }
  const size_t begin = out.size();
  symbols_of(word, byte_level, out);
  const size_t count = out.size() - begin;
  const size_t left =
      count <= kShortWord ? merge_short(out.data() + begin, count) : merge_long(out.data() + begin, count);
  out.resize(begin + left);
}

bool Bpe::fall_back_to_bytes(std::string_view symbol, std::vector<int32_t>& out) const {
  const auto id_of = [&](char c) { return byte_fallback_[static_cast<uint8_t>(c)]; };
  if (std::any_of(symbol.begin(), symbol.end(), [&](char c) { return id_of(c) < 0; })) return false;
  for (const char c : symbol) out.push_back(id_of(c));
  return true;
}

void Bpe::symbols_of(std::string_view word, bool byte_level, std::vector<int32_t>& out) const {
  bool unk_waits = false;
  const auto flush_unk = [&] {
    if (unk_waits) out.push_back(*options_.unk);
    unk_waits = false;
  };
  for (size_t at = 0; at < word.size();) {
    const size_t size = byte_level ? 1 : utf8_step(word, at).size;
    const std::string_view symbol = word.substr(at, size);
    at += size;
    const int32_t id =
        byte_level ? byte_symbol_[static_cast<uint8_t>(symbol[0])] : vocab_.find(symbol).value_or(-1);
    if (id >= 0) {
      flush_unk();
      out.push_back(id);
      continue;
    }
    if (options_.byte_fallback) {
      // The reference leaves a waiting unk where it is: it comes out after the bytes.
      if (fall_back_to_bytes(byte_level ? byte_level_spelling(symbol) : std::string(symbol), out)) continue;
    }
    if (!options_.unk) continue;
    if (!options_.fuse_unk) flush_unk();
    unk_waits = true;
  }
  flush_unk();
}

size_t Bpe::merge_short(int32_t* ids, size_t count) const {
  std::array<Merge, kShortWord> merges;  // merges[i]: of ids[i] and ids[i + 1]
  const auto look = [&](size_t i) {
    const Merge* merge = merges_.find(ids[i], ids[i + 1]);
    merges[i] = merge ? *merge : Merge{kNoMerge, -1};
  };
  for (size_t i = 0; i + 1 < count; ++i) look(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) best = merges[i].rank < merges[best].rank ? i : best;
    if (merges[best].rank == kNoMerge) break;
    ids[best] = merges[best].id;
    for (size_t i = best + 1; i + 1 < count; ++i) {
      ids[i] = ids[i + 1];
      merges[i - 1] = merges[i];
    }
    --count;
    if (best > 0) look(best - 1);
    if (best + 1 < count) look(best);
  }
  return count;
}

size_t Bpe::merge_long(int32_t* ids, size_t count) const {
  struct Candidate {
    uint32_t rank;
    uint32_t at;
    int32_t id;
    bool operator>(const Candidate& o) const { return rank != o.rank ? rank > o.rank : at > o.at; }
  };
  const auto n = static_cast<uint32_t>(count);
  std::vector<uint32_t> next(n), previous(n);  // the neighbours still there; n: none
  for (uint32_t i = 0; i < n; ++i) {
    next[i] = i + 1;
    previous[i] = i == 0 ? n : i - 1;
  }
  std::vector<Candidate> first;
  for (uint32_t i = 0; i + 1 < n; ++i) {
    if (const Merge* merge = merges_.find(ids[i], ids[i + 1])) first.push_back({merge->rank, i, merge->id});
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue({}, std::move(first));
  const auto look = [&](uint32_t left, uint32_t right) {
    if (left >= n || right >= n) return;
    if (const Merge* merge = merges_.find(ids[left], ids[right])) queue.push({merge->rank, left, merge->id});
  };
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    if (ids[top.at] < 0 || next[top.at] >= n) continue;  // merged away, or now the last
    const uint32_t right = next[top.at];
    const Merge* merge = merges_.find(ids[top.at], ids[right]);
    if (!merge || merge->id != top.id) continue;  // the pair has changed since
    ids[top.at] = top.id;
    ids[right] = -1;
    next[top.at] = next[right];
    if (next[right] < n) previous[next[right]] = top.at;
    look(previous[top.at], top.at);
    look(top.at, next[top.at]);
  }
  return static_cast<size_t>(std::remove(ids, ids + count, -1) - ids);
}

}  // namespace ssm::text
