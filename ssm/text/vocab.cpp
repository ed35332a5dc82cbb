#include "ssm/text/vocab.h"

#include <bit>
#include <cstring>

namespace ssm::text {
namespace {

uint64_t mix(uint64_t a, uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

}  // namespace

uint64_t hash_bytes(std::string_view bytes) {
  constexpr uint64_t kSeed = 0xA0761D6478BD642Fu;
  constexpr uint64_t kFactor = 0xE7037ED1A0B428DBu;
  uint64_t hash = bytes.size() * kSeed;
  const char* at = bytes.data();
  size_t left = bytes.size();
  uint64_t word = 0;
  for (; left >= 8; at += 8, left -= 8) {
    std::memcpy(&word, at, 8);
    hash = mix(hash ^ word ^ kSeed, kFactor);
  }
  word = 0;
  if (left > 0) std::memcpy(&word, at, left);
  return mix(hash ^ word ^ kSeed, kFactor ^ left);
}

void Vocab::reserve(size_t bytes, size_t entries) {
  bytes_.reserve(bytes);
  entries_.reserve(entries);
}

void Vocab::add(std::string_view token, int32_t id) {
  entries_.push_back({bytes_.size(), static_cast<uint32_t>(token.size()), id});
  bytes_.append(token);
}

std::optional<std::string> Vocab::index() {
  slots_.assign(std::bit_ceil(entries_.size() * 2 + 1), Slot{});
  const size_t mask = slots_.size() - 1;
  for (size_t entry = 0; entry < entries_.size(); ++entry) {
    const uint64_t hash = hash_bytes(token(entry));
    const auto high = static_cast<uint32_t>(hash >> 32);
    size_t i = hash & mask;
    for (; slots_[i].entry != 0; i = (i + 1) & mask) {
      if (slots_[i].hash == high && token(slots_[i].entry - 1) == token(entry))
        return std::string(token(entry));
    }
    slots_[i] = {high, static_cast<uint32_t>(entry + 1)};
  }
  return std::nullopt;
}

std::optional<size_t> Vocab::find_entry(std::string_view wanted, size_t guess) const {
  if (guess < entries_.size() && token(guess) == wanted) return guess;
  if (slots_.empty()) return std::nullopt;
  const size_t mask = slots_.size() - 1;
  const uint64_t hash = hash_bytes(wanted);
  const auto high = static_cast<uint32_t>(hash >> 32);
  for (size_t i = hash & mask; slots_[i].entry != 0; i = (i + 1) & mask) {
    if (slots_[i].hash == high && token(slots_[i].entry - 1) == wanted) return slots_[i].entry - 1;
  }
  return std::nullopt;
}

void MergeTable::reserve(size_t merges) {
  slots_.assign(std::bit_ceil(merges * 2 + 1), Slot{});
  mask_ = slots_.size() - 1;
}

void MergeTable::add(int32_t left, int32_t right, Merge merge) {
  const uint64_t key = key_of(left, right);
  size_t i = slot_of(key);
  while (slots_[i].key != kFree && slots_[i].key != key) i = (i + 1) & mask_;
  slots_[i] = {key, merge};
}

}  // namespace ssm::text
