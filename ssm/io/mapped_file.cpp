#include "ssm/io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace ssm::io {
namespace {

std::string reason(int error) { return std::generic_category().message(error); }

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
  const std::string name = printable(path.string());
  // O_NONBLOCK: opening a named pipe must not wait for a writer.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  SSM_CHECK(file.fd >= 0, "{}: cannot open: {}", name, reason(errno));
  struct stat info {};
  SSM_CHECK(::fstat(file.fd, &info) == 0, "{}: cannot read its size: {}", name, reason(errno));
  SSM_CHECK(!S_ISDIR(info.st_mode), "{}: is a folder, not a file", name);
  SSM_CHECK(S_ISREG(info.st_mode), "{}: is not a regular file", name);
  SSM_CHECK(info.st_size > 0, "{}: the file is empty", name);
  const auto size = static_cast<size_t>(info.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd, 0);
  SSM_CHECK(data != MAP_FAILED, "{}: cannot map {} bytes: {}", name, size, reason(errno));
  return std::shared_ptr<const MappedFile>(new MappedFile(static_cast<const std::byte*>(data), size));
}

MappedFile::~MappedFile() { ::munmap(const_cast<std::byte*>(data_), size_); }

void MappedFile::release(const void* data, size_t size) const {
  const auto base = reinterpret_cast<uintptr_t>(data_);
  const auto begin = reinterpret_cast<uintptr_t>(data);
  if (begin < base || !fits(begin - base, size, size_)) return;
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t last = (begin + size) / page * page;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

Bytes map_file(const std::filesystem::path& path) {
  const auto file = MappedFile::open(path);
  return {file->bytes(), file, printable(path.string())};
}

}  // namespace ssm::io
