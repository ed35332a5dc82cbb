// What train's tests share: files in a folder of their own, and errors that must say something.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "ssm/core/test_error.h"
#include "ssm/core/test_folder.h"
#include "ssm/io/bytes.h"

namespace ssm::train {

using test::TempFolder;

inline std::filesystem::path write_file(const std::filesystem::path& path, std::string_view text) {
  std::ofstream out(path, std::ios::binary);
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
  EXPECT_TRUE(out) << path;
  return path;
}

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

// Heap bytes of exactly this size, so that a read past the end is one the address sanitizer sees.
inline io::Bytes heap_bytes(std::string_view text, const std::string& name) {
  auto copy = std::make_shared<std::vector<std::byte>>(text.size());
  std::copy_n(reinterpret_cast<const std::byte*>(text.data()), text.size(), copy->data());
  return {{copy->data(), copy->size()}, copy, name};
}

// Runs f, which must throw ssm::Error with exactly this text.
inline void expect_error(const std::function<void()>& f, const std::string& text) {
  try {
    f();
    ADD_FAILURE() << "nothing was thrown; expected: " << text;
  } catch (const Error& e) {
    EXPECT_EQ(e.what(), text);
  }
}

// The same for a text that must be in it, on one line.
inline void expect_error_about(const std::function<void()>& f, const std::string& part) {
  test::expect_error(f, {part});
}

}  // namespace ssm::train
