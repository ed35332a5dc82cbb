// The meaning of selective_scan, in plain loops, for one sequence.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

namespace ssm::reference {

template <class T>
struct SelectiveScan {
  size_t E = 0, N = 0;
  std::vector<T> u, delta;    // [T, E]
  std::vector<T> A;           // [E, N]
  std::vector<T> B, C;        // [T, N]
  std::vector<T> D;           // [E] or empty
  std::vector<T> z;           // [T, E] or empty
  std::vector<T> delta_bias;  // [E] or empty
  bool delta_softplus = true;
};

template <class T>
T softplus(T x) {
  return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
}

// y [T, E]; h [N, E] is read and left at its last value.
template <class T>
std::vector<T> selective_scan(const SelectiveScan<T>& s, std::vector<T>& h) {
  const size_t E = s.E, N = s.N;
  std::vector<T> y(s.u.size());
  for (size_t t = 0; t < s.u.size() / E; ++t) {
    for (size_t e = 0; e < E; ++e) {
      const T u = s.u[t * E + e];
      T delta = s.delta[t * E + e];
      if (!s.delta_bias.empty()) delta += s.delta_bias[e];
      if (s.delta_softplus) delta = softplus(delta);
      T sum = 0;
      for (size_t n = 0; n < N; ++n) {
        T& hn = h[n * E + e];
        hn = std::exp(delta * s.A[e * N + n]) * hn + delta * s.B[t * N + n] * u;
        sum += s.C[t * N + n] * hn;
      }
      if (!s.D.empty()) sum += s.D[e] * u;
      if (!s.z.empty()) sum *= s.z[t * E + e] / (1 + std::exp(-s.z[t * E + e]));
      y[t * E + e] = sum;
    }
  }
  return y;
}

}  // namespace ssm::reference
