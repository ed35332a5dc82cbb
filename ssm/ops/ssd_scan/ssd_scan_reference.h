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

}  // namespace ssm::reference
