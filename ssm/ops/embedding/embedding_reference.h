// The meaning of embedding, in plain loops.
#pragma once

#include <cstdint>
#include <vector>

namespace ssm::reference {

template <class T>
std::vector<T> embedding(const std::vector<int32_t>& ids, const std::vector<T>& weight, int64_t M) {
  std::vector<T> y;
  for (const int32_t id : ids) {
    for (int64_t m = 0; m < M; ++m) y.push_back(weight[static_cast<size_t>(id * M + m)]);
  }
  return y;
}

template <class T>
void embedding_backward(const std::vector<int32_t>& ids, const std::vector<T>& dy, int64_t M,
                        std::vector<T>& dweight) {
  for (size_t t = 0; t < ids.size(); ++t) {
    for (int64_t m = 0; m < M; ++m)
      dweight[static_cast<size_t>(ids[t] * M + m)] += dy[t * static_cast<size_t>(M) + static_cast<size_t>(m)];
  }
}

}  // namespace ssm::reference
