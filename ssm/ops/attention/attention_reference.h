// The meaning of attention on one sequence, in plain loops.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "ssm/ops/attention/attention.h"

namespace ssm::reference {

// x [D] at a position of its text.
template <class T>
std::vector<T> rotated(const T* x, int64_t position, const AttentionHeads& h, bool back = false) {
  std::vector<T> y(x, x + h.head_dim);
  const int64_t half = h.rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const double angle =
        static_cast<double>(position) *
        std::pow(h.rotary_base, -2.0 * static_cast<double>(i) / static_cast<double>(h.rotary_dim));
    const T c = T(std::cos(angle)), s = T(back ? -std::sin(angle) : std::sin(angle));
    y[static_cast<size_t>(i)] = x[i] * c - x[i + half] * s;
    y[static_cast<size_t>(i + half)] = x[i + half] * c + x[i] * s;
  }
  return y;
}

// Columns of qkv: query of head h, key and value of key head h.
inline int64_t column(const AttentionHeads& h, int part, int64_t head) {
  if (h.by_head) return (3 * head + part) * h.head_dim;
  const int64_t before = part == 0 ? 0 : part == 1 ? h.heads : h.heads + h.kv_heads;
  return (before + head) * h.head_dim;
}

// Keys, rotated, and values of a text, [tokens, Hk, D] each.
template <class T>
struct KeysAndValues {
  std::vector<T> keys, values;
};

template <class T>
T weight_score(const std::vector<T>& q, const T* key) {
  T sum = 0;
  for (size_t d = 0; d < q.size(); ++d) sum += q[d] * key[d];
  return sum / std::sqrt(T(q.size()));
}

// qkv [T, (H + 2 Hk) D]; what was read before is read, and added to.
template <class T>
std::vector<T> attention(const std::vector<T>& qkv, const AttentionHeads& h, KeysAndValues<T>& kv) {
  const int64_t D = h.head_dim, row = h.kv_heads * D, begin = static_cast<int64_t>(kv.keys.size()) / row;
  const int64_t tokens = static_cast<int64_t>(qkv.size()) / h.width();
  std::vector<T> y;
  for (int64_t t = 0; t < tokens; ++t) {
    const T* const x = qkv.data() + t * h.width();
    for (int64_t g = 0; g < h.kv_heads; ++g) {
      const std::vector<T> key = rotated(x + column(h, 1, g), begin + t, h);
      kv.keys.insert(kv.keys.end(), key.begin(), key.end());
      kv.values.insert(kv.values.end(), x + column(h, 2, g), x + column(h, 2, g) + D);
    }
    for (int64_t head = 0; head < h.heads; ++head) {
      const int64_t g = head / (h.heads / h.kv_heads);
      const std::vector<T> q = rotated(x + column(h, 0, head), begin + t, h);
      std::vector<T> w;
      for (int64_t j = 0; j <= begin + t; ++j) w.push_back(weight_score(q, kv.keys.data() + j * row + g * D));
      T most = w[0], sum = 0;
      for (const T s : w) most = std::max(most, s);
      for (T& s : w) sum += s = std::exp(s - most);
      for (int64_t d = 0; d < D; ++d) {
        T out = 0;
        for (int64_t j = 0; j <= begin + t; ++j)
          out += w[static_cast<size_t>(j)] / sum * kv.values[static_cast<size_t>(j * row + g * D + d)];
        y.push_back(out);
      }
    }
  }
  return y;
}

// The gradient of qkv for dy [T, H D]; `past` is what was read before (attention.h has the formulas).
template <class T>
std::vector<T> attention_backward(const std::vector<T>& qkv, const AttentionHeads& h,
                                  const KeysAndValues<T>& past, const std::vector<T>& dy) {
  const int64_t D = h.head_dim, row = h.kv_heads * D, begin = static_cast<int64_t>(past.keys.size()) / row;
  KeysAndValues<T> kv = past;
  const std::vector<T> y = attention(qkv, h, kv);
  std::vector<T> dk(kv.keys.size()), dv(kv.values.size()), result(qkv.size());
  const int64_t tokens = static_cast<int64_t>(qkv.size()) / h.width();
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t head = 0; head < h.heads; ++head) {
      const int64_t g = head / (h.heads / h.kv_heads), out = (t * h.heads + head) * D;
      const std::vector<T> q = rotated(qkv.data() + t * h.width() + column(h, 0, head), begin + t, h);
      std::vector<T> s, dq(static_cast<size_t>(D));
      T most = -INFINITY, sum = 0, along = 0;
      for (int64_t j = 0; j <= begin + t; ++j) {
        s.push_back(weight_score(q, kv.keys.data() + j * row + g * D));
        most = std::max(most, s.back());
      }
      for (const T x : s) sum += std::exp(x - most);
      for (int64_t d = 0; d < D; ++d)
        along += dy[static_cast<size_t>(out + d)] * y[static_cast<size_t>(out + d)];
      for (int64_t j = 0; j <= begin + t; ++j) {
        const int64_t at = j * row + g * D;
        const T p = std::exp(s[static_cast<size_t>(j)] - most) / sum;
        T dp = 0;
        for (int64_t d = 0; d < D; ++d)
          dp += dy[static_cast<size_t>(out + d)] * kv.values[static_cast<size_t>(at + d)];
        const T ds = p * (dp - along) / std::sqrt(T(D));
        for (int64_t d = 0; d < D; ++d) {
          dv[static_cast<size_t>(at + d)] += p * dy[static_cast<size_t>(out + d)];
          dk[static_cast<size_t>(at + d)] += ds * q[static_cast<size_t>(d)];
          dq[static_cast<size_t>(d)] += ds * kv.keys[static_cast<size_t>(at + d)];
        }
      }
      const std::vector<T> turned = rotated(dq.data(), begin + t, h, true);
      std::copy(turned.begin(), turned.end(), result.begin() + t * h.width() + column(h, 0, head));
    }
  }
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t g = 0; g < h.kv_heads; ++g) {
      const int64_t at = (begin + t) * row + g * D;
      const std::vector<T> turned = rotated(dk.data() + at, begin + t, h, true);
      std::copy(turned.begin(), turned.end(), result.begin() + t * h.width() + column(h, 1, g));
      std::copy_n(dv.begin() + at, D, result.begin() + t * h.width() + column(h, 2, g));
    }
  }
  return result;
}

}  // namespace ssm::reference
