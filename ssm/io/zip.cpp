#include "ssm/io/zip.h"

#include <algorithm>
#include <optional>

namespace ssm::io {
namespace {

constexpr uint32_t kLocalHeader = 0x04034b50;
constexpr uint32_t kCentralHeader = 0x02014b50;
constexpr uint32_t kEnd = 0x06054b50;
constexpr uint32_t kEnd64Locator = 0x07064b50;
constexpr uint32_t kEnd64 = 0x06064b50;
constexpr size_t kLocalHeaderSize = 30;
constexpr size_t kCentralHeaderSize = 46;
constexpr size_t kEndSize = 22;
constexpr size_t kEnd64LocatorSize = 20;
constexpr size_t kEnd64Size = 56;
constexpr uint64_t kMostEntries = 1 << 20;

// The end record is the last thing in the file but for a comment of at most 65535 bytes.
std::optional<size_t> find_end_record(std::span<const std::byte> data) {
  if (data.size() < kEndSize) return std::nullopt;
  const size_t last = data.size() - kEndSize;
  const size_t first = last - std::min<size_t>(last, 0xffff);
  for (size_t i = last + 1; i-- > first;) {
    if (load_le<uint32_t>(data, i) == kEnd && i + kEndSize + load_le<uint16_t>(data, i + 20) == data.size()) {
      return i;
    }
  }
  return std::nullopt;
}

// Replaces the fields that a directory entry leaves at their maximum by the zip64 extra field's.
bool read_zip64(std::span<const std::byte> extra, ZipArchive::Entry& entry) {
  for (size_t i = 0; i + 4 <= extra.size();) {
    const size_t size = load_le<uint16_t>(extra, i + 2);
    if (!fits(i + 4, size, extra.size())) return false;
    if (load_le<uint16_t>(extra, i) == 1) {
      const std::span<const std::byte> field = extra.subspan(i + 4, size);
      size_t at = 0;
      for (uint64_t* value : {&entry.size, &entry.stored, &entry.header}) {
        if (*value != 0xffffffff) continue;
        if (!fits(at, 8, field.size())) return false;
        *value = load_le<uint64_t>(field, at);
        at += 8;
      }
      return true;
    }
    i += 4 + size;
  }
  return true;
}

}  // namespace

ZipArchive::ZipArchive(const Bytes& bytes) : data_(bytes.data), file_(bytes.name) {
  const std::optional<size_t> end = find_end_record(data_);
  SSM_CHECK(end, "{}: no zip directory at its end: not a zip archive, or truncated", file_);
  uint64_t count = load_le<uint16_t>(data_, *end + 10);
  uint64_t size = load_le<uint32_t>(data_, *end + 12);
  uint64_t offset = load_le<uint32_t>(data_, *end + 16);
  bool one_disk = load_le<uint16_t>(data_, *end + 4) == load_le<uint16_t>(data_, *end + 6);
  if (*end >= kEnd64LocatorSize && load_le<uint32_t>(data_, *end - kEnd64LocatorSize) == kEnd64Locator) {
    const auto at = load_le<uint64_t>(data_, *end - kEnd64LocatorSize + 8);
    SSM_CHECK(fits(at, kEnd64Size, *end) && load_le<uint32_t>(data_, at) == kEnd64,
              "{}: zip64 end record: not at byte {}", file_, at);
    one_disk = load_le<uint32_t>(data_, at + 16) == load_le<uint32_t>(data_, at + 20);
    count = load_le<uint64_t>(data_, at + 32);
    size = load_le<uint64_t>(data_, at + 40);
    offset = load_le<uint64_t>(data_, at + 48);
  }
  SSM_CHECK(one_disk, "{}: a zip archive in several parts", file_);
  SSM_CHECK(fits(offset, size, *end), "{}: zip directory: {} bytes at {} are not inside the file", file_,
            size, offset);
  read_directory(offset, size, count);
}

void ZipArchive::read_directory(uint64_t offset, uint64_t size, uint64_t count) {
  SSM_CHECK(count <= kMostEntries && count <= size / kCentralHeaderSize,
            "{}: zip directory: {} entries in {} bytes", file_, count, size);
  const uint64_t end = offset + size;
  for (uint64_t i = 0; i < count; ++i) offset = read_entry(offset, end);
  SSM_CHECK(offset == end, "{}: zip directory: {} bytes after its last entry", file_, end - offset);
}

uint64_t ZipArchive::read_entry(uint64_t offset, uint64_t end) {
  SSM_CHECK(fits(offset, kCentralHeaderSize, end) && load_le<uint32_t>(data_, offset) == kCentralHeader,
            "{}: zip directory: no entry at byte {}", file_, offset);
  const uint64_t name_size = load_le<uint16_t>(data_, offset + 28);
  const uint64_t extra_size = load_le<uint16_t>(data_, offset + 30);
  const uint64_t comment_size = load_le<uint16_t>(data_, offset + 32);
  const uint64_t name_at = offset + kCentralHeaderSize;
  SSM_CHECK(fits(name_at, name_size + extra_size + comment_size, end),
            "{}: zip directory: the entry at byte {} goes past its end", file_, offset);
  std::string name(reinterpret_cast<const char*>(data_.data() + name_at), name_size);
  Entry entry;
  entry.flags = load_le<uint16_t>(data_, offset + 8);
  entry.method = load_le<uint16_t>(data_, offset + 10);
  entry.stored = load_le<uint32_t>(data_, offset + 20);
  entry.size = load_le<uint32_t>(data_, offset + 24);
  entry.header = load_le<uint32_t>(data_, offset + 42);
  SSM_CHECK(read_zip64(data_.subspan(name_at + name_size, extra_size), entry),
            "{}: entry {}: broken zip64 field", file_, printable(name));
  const auto [at, is_new] = entries_.emplace(std::move(name), entry);
  SSM_CHECK(is_new, "{}: entry {} is in the zip directory twice", file_, printable(at->first));
  return name_at + name_size + extra_size + comment_size;
}

ZipArchive::Range ZipArchive::locate(std::string_view name) const {
  const auto found = entries_.find(name);
  SSM_CHECK(found != entries_.end(), "{}: entry {} is missing", file_, printable(name));
  const Entry& entry = found->second;
  SSM_CHECK(entry.method == 0 && entry.stored == entry.size,
            "{}: entry {} is compressed; only stored entries are read", file_, printable(name));
  SSM_CHECK((entry.flags & 1) == 0, "{}: entry {} is encrypted", file_, printable(name));
  // The name and the extra field before the content may differ in length from the directory's.
  SSM_CHECK(fits(entry.header, kLocalHeaderSize, data_.size()) &&
                load_le<uint32_t>(data_, entry.header) == kLocalHeader,
            "{}: entry {}: no local header at byte {}", file_, printable(name), entry.header);
  const uint64_t before = kLocalHeaderSize + uint64_t{load_le<uint16_t>(data_, entry.header + 26)} +
                          load_le<uint16_t>(data_, entry.header + 28);
  SSM_CHECK(fits(entry.header, before, data_.size()) && fits(entry.header + before, entry.size, data_.size()),
            "{}: entry {}: its {} bytes go past the end of the file", file_, printable(name), entry.size);
  return {static_cast<size_t>(entry.header + before), static_cast<size_t>(entry.size)};
}

}  // namespace ssm::io
