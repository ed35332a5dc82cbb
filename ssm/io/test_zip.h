// Zips made by hand, for the tests and the fuzz targets.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace ssm::io {

template <class T>
void append_le(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

// A zip of stored entries as torch writes one.
struct ZipEntry {
  std::string name;
  std::string content;
  uint16_t method = 0;
  uint16_t flags = 0;
};
inline std::string make_zip(const std::vector<ZipEntry>& entries, bool zip64 = false) {
  std::string out, directory;
  for (const ZipEntry& e : entries) {
    const auto offset = static_cast<uint32_t>(out.size());
    const auto size = static_cast<uint32_t>(e.content.size());
    append_le<uint32_t>(out, 0x04034b50);
    for (const uint16_t v : {uint16_t{20}, e.flags, e.method, uint16_t{0}, uint16_t{0}}) append_le(out, v);
    for (const uint32_t v : {0u, 0u, 0u}) append_le(out, v);  // as with a data descriptor
    append_le(out, static_cast<uint16_t>(e.name.size()));
    append_le(out, uint16_t{0});
    out += e.name + e.content;
    append_le<uint32_t>(directory, 0x02014b50);
    for (const uint16_t v : {uint16_t{20}, uint16_t{20}, e.flags, e.method, uint16_t{0}, uint16_t{0}}) {
      append_le(directory, v);
    }
    append_le(directory, 0u);
    for (int i = 0; i < 2; ++i) append_le(directory, zip64 ? 0xffffffffu : size);
    append_le(directory, static_cast<uint16_t>(e.name.size()));
    append_le(directory, static_cast<uint16_t>(zip64 ? 28 : 0));
    for (int i = 0; i < 3; ++i) append_le(directory, uint16_t{0});
    append_le(directory, 0u);
    append_le(directory, zip64 ? 0xffffffffu : offset);
    directory += e.name;
    if (zip64) {
      append_le(directory, uint16_t{1});
      append_le(directory, uint16_t{24});
      for (const uint64_t v : {uint64_t{size}, uint64_t{size}, uint64_t{offset}}) append_le(directory, v);
    }
  }
  const uint64_t start = out.size();
  out += directory;
  if (zip64) {
    const uint64_t end64 = out.size();
    append_le<uint32_t>(out, 0x06064b50);
    append_le<uint64_t>(out, 44);
    for (const uint16_t v : {uint16_t{45}, uint16_t{45}}) append_le(out, v);
    for (const uint32_t v : {0u, 0u}) append_le(out, v);
    for (const uint64_t v :
         {uint64_t{entries.size()}, uint64_t{entries.size()}, uint64_t{directory.size()}, start}) {
      append_le(out, v);
    }
    append_le<uint32_t>(out, 0x07064b50);
    append_le(out, 0u);
    append_le(out, end64);
    append_le(out, 1u);
  }
  append_le<uint32_t>(out, 0x06054b50);
  for (const uint16_t v : {uint16_t{0}, uint16_t{0}}) append_le(out, v);
  for (int i = 0; i < 2; ++i) append_le(out, static_cast<uint16_t>(zip64 ? 0xffff : entries.size()));
  append_le(out, zip64 ? 0xffffffffu : static_cast<uint32_t>(directory.size()));
  append_le(out, zip64 ? 0xffffffffu : static_cast<uint32_t>(start));
  append_le(out, uint16_t{0});
  return out;
}

}  // namespace ssm::io
