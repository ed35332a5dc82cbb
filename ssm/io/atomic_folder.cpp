#include "ssm/io/atomic_folder.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <system_error>

#include "ssm/core/atomic_file.h"
#include "ssm/io/bytes.h"

namespace ssm::io {

AtomicFolder::AtomicFolder(std::filesystem::path target) : target_(std::move(target)) {
  static std::atomic<uint64_t> counter{0};
  std::error_code error;
  SSM_CHECK(!std::filesystem::exists(target_, error), "{}: exists already", printable(target_.string()));
  temporary_ = target_;
  temporary_ += fmt::format(".tmp-{}-{}", ::getpid(), counter++);
  std::filesystem::create_directories(temporary_, error);
  SSM_CHECK(!error, "{}: cannot create: {}", printable(target_.string()), error.message());
}

AtomicFolder::~AtomicFolder() {
  std::error_code ignored;
  if (!temporary_.empty()) std::filesystem::remove_all(temporary_, ignored);
}

void AtomicFolder::commit() {
  sync_folder(temporary_);
  SSM_CHECK(::rename(temporary_.c_str(), target_.c_str()) == 0, "{}: cannot rename into place: {}",
            printable(target_.string()), std::generic_category().message(errno));
  temporary_.clear();
  sync_folder(target_.has_parent_path() ? target_.parent_path() : ".");
}

}  // namespace ssm::io
