// Reads tests/goldens/quant (scripts/make_quant_goldens.py).
#pragma once

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "ssm/core/tensor.h"

namespace ssm::test {

inline std::vector<char> quant_golden(const std::string& name) {
  const auto path = std::filesystem::path(SSM_SOURCE_DIR) / "tests" / "goldens" / "quant" / name;
  std::ifstream in(path, std::ios::binary);
  SSM_CHECK(in.good(), "{}: cannot open", path.string());
  return {std::istreambuf_iterator<char>(in), {}};
}

// The whole file as a tensor of that shape.
inline Tensor quant_golden(const std::string& name, const Shape& shape, DType dtype) {
  const std::vector<char> bytes = quant_golden(name);
  Tensor t = Tensor::empty(shape, dtype);
  SSM_CHECK(bytes.size() == t.bytes(), "{} holds {} bytes, not {}", name, bytes.size(), t.bytes());
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(t.raw()));
  return t;
}

}  // namespace ssm::test
