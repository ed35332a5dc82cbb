// The directory of a zip archive (also zip64) over bytes in memory. Entries are only located: torch stores
// them uncompressed, so their content is a view. CRCs are not checked: that would read every weight at open.
#pragma once

#include <map>

#include "ssm/io/bytes.h"

namespace ssm::io {

class ZipArchive {
 public:
  // Throws Error naming the file: not a zip, truncated, an entry outside the file or twice in it.
  explicit ZipArchive(const Bytes& bytes);

  struct Entry {
    uint64_t header = 0;  // position of the local header
    uint64_t stored = 0;  // bytes in the file
    uint64_t size = 0;    // bytes of the content
    uint16_t method = 0;
    uint16_t flags = 0;
  };
  using Entries = std::map<std::string, Entry, std::less<>>;
  const Entries& entries() const { return entries_; }
  bool contains(std::string_view name) const { return entries_.find(name) != entries_.end(); }
  // The content's position in the archive's bytes and its size. Refuses missing, compressed and encrypted
  // entries by name.
  struct Range {
    size_t offset;
    size_t size;
  };
  Range locate(std::string_view name) const;

 private:
  void read_directory(uint64_t offset, uint64_t size, uint64_t count);
  uint64_t read_entry(uint64_t offset, uint64_t end);

  std::span<const std::byte> data_;
  std::string file_;
  Entries entries_;
};

}  // namespace ssm::io
