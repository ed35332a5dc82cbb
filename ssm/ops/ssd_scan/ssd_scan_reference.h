// The meaning of ssd_scan, as the recurrence it computes, for one sequence.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

namespace ssm::reference {

template <class T>
struct SsdScan {
  size_t H = 0, P = 0, G = 1, N = 0;
  std::vector<T> x;        // [T, H, P]
  std::vector<T> dt;       // [T, H]
  std::vector<T> A;        // [H]
  std::vector<T> B, C;     // [T, G, N]
  std::vector<T> D;        // [H], [H, P] or empty
  std::vector<T> dt_bias;  // [H] or empty
  bool dt_softplus = true;
  T dt_min = 0, dt_max = std::numeric_limits<T>::infinity();
};

// y [T, H, P]; state [H, N, P] is read and left at its last value.
template <class T>
std::vector<T> ssd_scan(const SsdScan<T>& s, std::vector<T>& state) {
  const size_t H = s.H, P = s.P, N = s.N;
  std::vector<T> y(s.x.size());
  for (size_t t = 0; t < s.dt.size() / H; ++t) {
    for (size_t h = 0; h < H; ++h) {
      const size_t g = h / (H / s.G);
      T dt = s.dt[t * H + h];
      if (!s.dt_bias.empty()) dt += s.dt_bias[h];
      if (s.dt_softplus) dt = dt > 0 ? dt + std::log1p(std::exp(-dt)) : std::log1p(std::exp(dt));
      dt = std::clamp(dt, s.dt_min, s.dt_max);
      const T decay = std::exp(dt * s.A[h]);
      for (size_t p = 0; p < P; ++p) {
        const T x = s.x[(t * H + h) * P + p];
        T sum = 0;
        for (size_t n = 0; n < N; ++n) {
          T& hn = state[(h * N + n) * P + p];
          hn = decay * hn + dt * s.B[(t * s.G + g) * N + n] * x;
          sum += s.C[(t * s.G + g) * N + n] * hn;
        }
        if (!s.D.empty()) sum += (s.D.size() == H ? s.D[h] : s.D[h * P + p]) * x;
        y[(t * H + h) * P + p] = sum;
      }
    }
  }
  return y;
}

template <class T>
struct SsdScanGradients {
  std::vector<T> x, dt, A, B, C, D, dt_bias;  // laid out as in SsdScan
  std::vector<T> A_terms, dt_bias_terms;      // squares of what is summed over the tokens, added up
  std::vector<T> initial;                     // [H, N, P]
};

// The gradients for dy [T, H, P] and dlast [H, N, P], from `initial` [H, N, P], as the recurrence in reverse
// time (ssd_scan.h).
template <class T>
SsdScanGradients<T> ssd_scan_backward(const SsdScan<T>& s, const std::vector<T>& initial,
                                      const std::vector<T>& dy, const std::vector<T>& dlast) {
  const size_t H = s.H, P = s.P, N = s.N, length = s.dt.size() / H;
  const auto like = [](const std::vector<T>& v) { return std::vector<T>(v.size(), T(0)); };
  SsdScanGradients<T> grads{like(s.x), like(s.dt),      like(s.A), like(s.B),       like(s.C),
                            like(s.D), like(s.dt_bias), like(s.A), like(s.dt_bias), like(initial)};
  for (size_t h = 0; h < H; ++h) {
    const size_t g = h / (H / s.G);
    std::vector<T> dt(length), slope(length, T(1)), states((length + 1) * N * P), dh(N * P);
    const auto head = static_cast<std::ptrdiff_t>(h * N * P);
    std::copy_n(initial.begin() + head, N * P, states.begin());
    std::copy_n(dlast.begin() + head, N * P, dh.begin());
    for (size_t t = 0; t < length; ++t) {
      const T raw = s.dt[t * H + h] + (s.dt_bias.empty() ? T(0) : s.dt_bias[h]);
      const T step = !s.dt_softplus ? raw
                     : raw > 0      ? raw + std::log1p(std::exp(-raw))
                                    : std::log1p(std::exp(raw));
      dt[t] = std::clamp(step, s.dt_min, s.dt_max);
      slope[t] = step < s.dt_min || step > s.dt_max ? T(0) : s.dt_softplus ? 1 / (1 + std::exp(-raw)) : T(1);
      for (size_t n = 0; n < N; ++n) {
        for (size_t p = 0; p < P; ++p) {
          states[((t + 1) * N + n) * P + p] = std::exp(dt[t] * s.A[h]) * states[(t * N + n) * P + p] +
                                              dt[t] * s.B[(t * s.G + g) * N + n] * s.x[(t * H + h) * P + p];
        }
      }
    }
    for (size_t t = length; t-- > 0;) {
      const T decay = std::exp(dt[t] * s.A[h]);
      T r = 0, direct = 0;
      for (size_t p = 0; p < P; ++p) {
        const size_t i = (t * H + h) * P + p;
        for (size_t n = 0; n < N; ++n) {
          const size_t row = (t * s.G + g) * N + n;
          T& d = dh[n * P + p];
          d += s.C[row] * dy[i];
          grads.C[row] += states[((t + 1) * N + n) * P + p] * dy[i];
          grads.B[row] += dt[t] * d * s.x[i];
          grads.x[i] += dt[t] * s.B[row] * d;
          r += decay * d * states[(t * N + n) * P + p];
          direct += s.B[row] * d * s.x[i];
          d *= decay;
        }
        if (s.D.empty()) continue;
        const size_t at = s.D.size() == H ? h : h * P + p;
        grads.x[i] += s.D[at] * dy[i];
        grads.D[at] += dy[i] * s.x[i];
      }
      grads.A[h] += dt[t] * r;
      grads.A_terms[h] += dt[t] * r * dt[t] * r;
      grads.dt[t * H + h] = slope[t] * (s.A[h] * r + direct);
      if (s.dt_bias.empty()) continue;
      grads.dt_bias[h] += grads.dt[t * H + h];
      grads.dt_bias_terms[h] += grads.dt[t * H + h] * grads.dt[t * H + h];
    }
    std::copy_n(dh.begin(), N * P, grads.initial.begin() + head);
  }
  return grads;
}

}  // namespace ssm::reference
