// The micro-kernel of ssd_scan's and attention's products: a tile of R rows by W vectors held in registers,
// to which outer products are added. An element's sum runs over k in order, whatever the tile it falls into.
#if defined(SSM_OPS_SIMD_MATMUL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SSM_OPS_SIMD_MATMUL_INL_H_
#undef SSM_OPS_SIMD_MATMUL_INL_H_
#else
#define SSM_OPS_SIMD_MATMUL_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace ssm::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

inline constexpr int kTileRows = 4;
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
inline constexpr int kTileVectors = 4;  // 16 of 32 registers
#else
inline constexpr int kTileVectors = 2;  // 8 of 16 registers
#endif

HWY_INLINE int64_t lanes() { return static_cast<int64_t>(hn::Lanes(hn::ScalableTag<float>())); }

template <int W, int R = kTileRows>
struct Tile {
  hn::Vec<hn::ScalableTag<float>> v[R][W];

  HWY_INLINE Tile() {}  // not the implicit one: it would not be compiled for the target

  HWY_INLINE void zero() {
    const hn::ScalableTag<float> d;
    for (auto& row : v) {
      for (auto& x : row) x = hn::Zero(d);
    }
  }

  HWY_INLINE void load(const float* p, int64_t stride) {
    const hn::ScalableTag<float> d;
    for (int r = 0; r < R; ++r) {
      for (int w = 0; w < W; ++w) v[r][w] = hn::LoadU(d, p + r * stride + w * lanes());
    }
  }

  HWY_INLINE void store(float* p, int64_t stride) const {
    const hn::ScalableTag<float> d;
    for (int r = 0; r < R; ++r) {
      for (int w = 0; w < W; ++w) hn::StoreU(v[r][w], d, p + r * stride + w * lanes());
    }
  }

  HWY_INLINE void scale_rows(const float* factor) {
    const hn::ScalableTag<float> d;
    for (int r = 0; r < R; ++r) {
      for (int w = 0; w < W; ++w) v[r][w] = hn::Mul(v[r][w], hn::Set(d, factor[r]));
    }
  }

  // v[r] += sum_k a[r * a_row + k * a_step] * b[k * b_step ...]
  HWY_INLINE void add_product(const float* HWY_RESTRICT a, int64_t a_row, int64_t a_step,
                              const float* HWY_RESTRICT b, int64_t b_step, int64_t K) {
    const hn::ScalableTag<float> d;
    Tile c = *this;
    for (int64_t k = 0; k < K; ++k, a += a_step, b += b_step) {
      hn::Vec<decltype(d)> row[W];
      for (int w = 0; w < W; ++w) row[w] = hn::LoadU(d, b + w * lanes());
      for (int r = 0; r < R; ++r) {
        const auto x = hn::Set(d, a[r * a_row]);
        for (int w = 0; w < W; ++w) c.v[r][w] = hn::MulAdd(x, row[w], c.v[r][w]);
      }
    }
    *this = c;
  }
};

// Calls body(Tile<W>, first column) until `columns`, a multiple of the lanes, are covered.
template <class Body>
HWY_INLINE void for_each_tile(int64_t columns, Body&& body) {
  int64_t p = 0;
  for (; p + kTileVectors * lanes() <= columns; p += kTileVectors * lanes()) body(Tile<kTileVectors>(), p);
  for (; p < columns; p += lanes()) body(Tile<1>(), p);
}

}  // namespace ssm::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per target
