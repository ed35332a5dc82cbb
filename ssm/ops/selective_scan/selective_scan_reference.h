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

template <class T>
struct SelectiveScanGradients {
  std::vector<T> u, delta, A, B, C, D, z, delta_bias;  // laid out as in SelectiveScan
};

// The gradients for dy [T, E], from the states before the first token (selective_scan.h has the formulas).
template <class T>
SelectiveScanGradients<T> selective_scan_backward(const SelectiveScan<T>& s, const std::vector<T>& initial,
                                                  const std::vector<T>& dy) {
  const size_t E = s.E, N = s.N, length = s.u.size() / E;
  const auto like = [](const std::vector<T>& x) { return std::vector<T>(x.size(), T(0)); };
  SelectiveScanGradients<T> g{like(s.u), like(s.delta), like(s.A), like(s.B),
                              like(s.C), like(s.D),     like(s.z), like(s.delta_bias)};
  for (size_t e = 0; e < E; ++e) {
    std::vector<T> delta(length), slope(length, T(1)), h((length + 1) * N), dh(N, T(0));
    for (size_t n = 0; n < N; ++n) h[n] = initial[n * E + e];
    for (size_t t = 0; t < length; ++t) {
      const T raw = s.delta[t * E + e] + (s.delta_bias.empty() ? T(0) : s.delta_bias[e]);
      delta[t] = s.delta_softplus ? softplus(raw) : raw;
      if (s.delta_softplus) slope[t] = 1 / (1 + std::exp(-raw));
      for (size_t n = 0; n < N; ++n) {
        h[(t + 1) * N + n] =
            std::exp(delta[t] * s.A[e * N + n]) * h[t * N + n] + delta[t] * s.B[t * N + n] * s.u[t * E + e];
      }
    }
    for (size_t t = length; t-- > 0;) {
      const size_t i = t * E + e;
      T y = s.D.empty() ? T(0) : s.D[e] * s.u[i], gated = dy[i];
      for (size_t n = 0; n < N; ++n) y += s.C[t * N + n] * h[(t + 1) * N + n];
      if (!s.z.empty()) {
        const T sigmoid = 1 / (1 + std::exp(-s.z[i]));
        g.z[i] = dy[i] * y * sigmoid * (1 + s.z[i] * (1 - sigmoid));
        gated *= s.z[i] * sigmoid;
      }
      if (!s.D.empty()) g.D[e] += gated * s.u[i], g.u[i] += gated * s.D[e];
      T ddelta = 0;
      for (size_t n = 0; n < N; ++n) {
        const T decay = std::exp(delta[t] * s.A[e * N + n]), B = s.B[t * N + n];
        dh[n] += s.C[t * N + n] * gated;
        g.C[t * N + n] += gated * h[(t + 1) * N + n];
        g.B[t * N + n] += dh[n] * delta[t] * s.u[i];
        g.u[i] += dh[n] * delta[t] * B;
        g.A[e * N + n] += dh[n] * delta[t] * decay * h[t * N + n];
        ddelta += dh[n] * (s.A[e * N + n] * decay * h[t * N + n] + B * s.u[i]);
        dh[n] *= decay;
      }
      g.delta[i] = ddelta * slope[t];
      if (!s.delta_bias.empty()) g.delta_bias[e] += g.delta[i];
    }
  }
  return g;
}

}  // namespace ssm::reference
