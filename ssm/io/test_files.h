// What io's tests share: temporary folders, the goldens, and the check that whatever is done
// to a file nothing but ssm::Error comes out.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "ssm/core/test_error.h"
#include "ssm/core/test_folder.h"
#include "ssm/io/bytes.h"
#include "ssm/io/test_zip.h"
#include "ssm/io/weight_source.h"

namespace ssm::io {

inline std::filesystem::path golden(const std::string& name) {
  return std::filesystem::path(SSM_SOURCE_DIR) / "tests" / "goldens" / "io" / name;
}

inline std::string read_text(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_text(const std::filesystem::path& path, std::string_view text) {
  std::ofstream out(path, std::ios::binary);
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
  ASSERT_TRUE(out) << path;
}

using test::expect_error;
using test::TempFolder;

// Heap bytes of exactly this size, so that a read past the end is one the address sanitizer sees.
inline Bytes bytes_of(std::string_view text, const std::string& name = "test.file") {
  auto copy = std::make_shared<std::vector<std::byte>>(text.size());
  std::copy_n(reinterpret_cast<const std::byte*>(text.data()), text.size(), copy->data());
  return {{copy->data(), copy->size()}, copy, name};
}

// Touches every tensor's every byte.
inline void read_all(const WeightSource& source) {
  volatile unsigned sum = 0;
  for (const std::string& name : source.names()) {
    try {
      std::optional<Tensor> tensor = source.find(name);
      if (!tensor) tensor = source.find_packed(name).value_or(QuantizedTensor{}).bytes;
      ASSERT_TRUE(tensor->defined()) << name;
      for (size_t i = 0; i < tensor->bytes(); ++i) sum = sum + static_cast<unsigned>(tensor->raw()[i]);
    } catch (const Error&) {
    }
  }
}

// Opens every truncation and many corruptions of a valid file: each either opens or throws ssm::Error.
inline void damage(const std::string& valid, const std::function<void(const std::string&)>& open) {
  const auto attempt = [&](const std::string& text) {
    try {
      open(text);
    } catch (const Error&) {
    }
  };
  for (size_t size = 0; size < valid.size(); ++size) attempt(valid.substr(0, size));
  std::mt19937 random(1);
  for (int i = 0; i < 4000; ++i) {
    std::string text = valid;
    const int flips = 1 + i % 3;
    for (int k = 0; k < flips; ++k) text[random() % text.size()] = static_cast<char>(random());
    attempt(text);
  }
}

}  // namespace ssm::io
