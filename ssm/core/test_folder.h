// A folder of its own for a test, removed with everything in it at the test's end.
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <string>

#include "ssm/core/error.h"

namespace ssm::test {

class TempFolder {
 public:
  TempFolder() {
    std::string name = std::filesystem::temp_directory_path() / "ssm-test-XXXXXX";
    SSM_CHECK(mkdtemp(name.data()) != nullptr, "cannot make {}", name);
    path_ = name;
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace ssm::test
