// Tensor cores at the level of a warp group (wgmma; compiled for 9.0a only): four warps multiply 64 rows at a
// time, the right operand always from shared memory, the left one from there or from registers, and sum in
// f32. The products run beside the threads that start them, so that
//   fence_products()   stands between other uses of the registers of a product and its start,
//   commit_products()  closes a group of products,
//   wait_for_products<n>()  waits for all but the last n groups; settle() keeps uses of their results behind
//   it.
// Shared memory that threads wrote must pass publish_to_products() and a barrier before a product reads it.
//
// Operands in shared memory are panels: 64 rows of 64 elements (128 bytes), the 16-byte vector v of row r at
// place v ^ (r & 7); panels begin at multiples of 1024 bytes. A row of more than 64 elements continues in the
// next panel. Fragments in registers are those of mma.cuh, 16 rows a warp.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ssm/ops/cuda/types.cuh"

namespace ssm::cuda {

inline constexpr int kPanelBytes = 64 * 128;

// Where a panel's vector stands.
__device__ __forceinline__ uint32_t panel_offset(int row, int vector) {
  return static_cast<uint32_t>(row * 128 + ((vector ^ (row & 7)) * 16));
}

// A matrix of panels, as the products take it: multiplied along its rows, or (`transposed` products) down its
// columns.
__device__ __forceinline__ uint64_t panels_at(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 / 16} << 32,
                     kNextPanel = uint64_t{kPanelBytes / 16} << 16;
  return kSwizzle128 | kEightRows | kNextPanel | (address & 0x3ffff) >> 4;
}
// Columns [16 k, ..) of it, and rows [16 k, ..).
__device__ __forceinline__ uint64_t columns_from(uint64_t panels, int k) {
  return panels + static_cast<uint64_t>((k / 4 * kPanelBytes + k % 4 * 32) / 16);
}
__device__ __forceinline__ uint64_t rows_from(uint64_t panels, int k) {
  return panels + static_cast<uint64_t>(k * 2048 / 16);
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

__device__ __forceinline__ void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kLeft>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}
template <int kCount>
__device__ __forceinline__ void settle(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void settle(uint32_t (&a)[kCount][4]) {
#pragma unroll
  for (int i = 0; i < 4 * kCount; ++i) asm volatile("" : "+r"(a[i / 4][i % 4])::"memory");
}
__device__ __forceinline__ void publish_to_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

#define SSM_EIGHT(d, i)                                                                       \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define SSM_16_NAMES "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define SSM_24_NAMES SSM_16_NAMES ", %16, %17, %18, %19, %20, %21, %22, %23"
#define SSM_32_NAMES SSM_24_NAMES ", %24, %25, %26, %27, %28, %29, %30, %31"
#define SSM_40_NAMES SSM_32_NAMES ", %32, %33, %34, %35, %36, %37, %38, %39"
#define SSM_48_NAMES SSM_40_NAMES ", %40, %41, %42, %43, %44, %45, %46, %47"
#define SSM_56_NAMES SSM_48_NAMES ", %48, %49, %50, %51, %52, %53, %54, %55"
#define SSM_64_NAMES \
  SSM_48_NAMES ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SSM_72_NAMES SSM_64_NAMES ", %64, %65, %66, %67, %68, %69, %70, %71"

// d = a b^T, or d += with `add`, 16 deep, both multiplied along their rows. b has as many rows, one panel
// below another, as a thread has twice of sums.
#define SSM_MULTIPLY_PANELS(kSums, kColumns, names, add_at, a_at, b_at, ...)                            \
  template <class X>                                                                                    \
  __device__ __forceinline__ void multiply_panels(float(&d)[kSums], uint64_t a, uint64_t b, bool add) { \
    if constexpr (std::is_same_v<X, __nv_bfloat16>) {                                                   \
      SSM_PRODUCT("bf16", kColumns, names, add_at, a_at, b_at, __VA_ARGS__);                            \
    } else {                                                                                            \
      SSM_PRODUCT("f16", kColumns, names, add_at, a_at, b_at, __VA_ARGS__);                             \
    }                                                                                                   \
  }
#define SSM_PRODUCT(type, kColumns, names, add_at, a_at, b_at, ...)                                      \
  asm volatile("{.reg .pred p; setp.ne.b32 p, " add_at ", 0; wgmma.mma_async.sync.aligned.m64n" kColumns \
               "k16.f32." type "." type " {" names "}, " a_at ", " b_at ", p, 1, 1, 0, 0;}"              \
               : __VA_ARGS__                                                                             \
               : "l"(a), "l"(b), "r"(static_cast<int>(add)))
SSM_MULTIPLY_PANELS(16, "32", SSM_16_NAMES, "%18", "%16", "%17", SSM_EIGHT(d, 0), SSM_EIGHT(d, 8))
SSM_MULTIPLY_PANELS(24, "48", SSM_24_NAMES, "%26", "%24", "%25", SSM_EIGHT(d, 0), SSM_EIGHT(d, 8),
                    SSM_EIGHT(d, 16))
SSM_MULTIPLY_PANELS(32, "64", SSM_32_NAMES, "%34", "%32", "%33", SSM_EIGHT(d, 0), SSM_EIGHT(d, 8),
                    SSM_EIGHT(d, 16), SSM_EIGHT(d, 24))
SSM_MULTIPLY_PANELS(40, "80", SSM_40_NAMES, "%42", "%40", "%41", SSM_EIGHT(d, 0), SSM_EIGHT(d, 8),
                    SSM_EIGHT(d, 16), SSM_EIGHT(d, 24), SSM_EIGHT(d, 32))
SSM_MULTIPLY_PANELS(48, "96", SSM_48_NAMES, "%50", "%48", "%49", SSM_EIGHT(d, 0), SSM_EIGHT(d, 8),
                    SSM_EIGHT(d, 16), SSM_EIGHT(d, 24), SSM_EIGHT(d, 32), SSM_EIGHT(d, 40))
SSM_MULTIPLY_PANELS(56, "112", SSM_56_NAMES, "%58", "%56", "%57", SSM_EIGHT(d, 0), SSM_EIGHT(d, 8),
                    SSM_EIGHT(d, 16), SSM_EIGHT(d, 24), SSM_EIGHT(d, 32), SSM_EIGHT(d, 40), SSM_EIGHT(d, 48))
SSM_MULTIPLY_PANELS(72, "144", SSM_72_NAMES, "%74", "%72", "%73", SSM_EIGHT(d, 0), SSM_EIGHT(d, 8),
                    SSM_EIGHT(d, 16), SSM_EIGHT(d, 24), SSM_EIGHT(d, 32), SSM_EIGHT(d, 40), SSM_EIGHT(d, 48),
                    SSM_EIGHT(d, 56), SSM_EIGHT(d, 64))
#undef SSM_PRODUCT
#undef SSM_MULTIPLY_PANELS

// d += a b, 16 deep: a from registers, b multiplied down its 64 or 128 columns.
template <class X>
__device__ __forceinline__ void multiply_down(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
#define SSM_PRODUCT(type)                                                                    \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" SSM_32_NAMES \
               "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                                   \
               : SSM_EIGHT(d, 0), SSM_EIGHT(d, 8), SSM_EIGHT(d, 16), SSM_EIGHT(d, 24)        \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
  if constexpr (std::is_same_v<X, __nv_bfloat16>) {
    SSM_PRODUCT("bf16");
  } else {
    SSM_PRODUCT("f16");
  }
#undef SSM_PRODUCT
}
template <class X>
__device__ __forceinline__ void multiply_down(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
#define SSM_PRODUCT(type)                                                                                \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" SSM_64_NAMES            \
               "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"                                               \
               : SSM_EIGHT(d, 0), SSM_EIGHT(d, 8), SSM_EIGHT(d, 16), SSM_EIGHT(d, 24), SSM_EIGHT(d, 32), \
                 SSM_EIGHT(d, 40), SSM_EIGHT(d, 48), SSM_EIGHT(d, 56)                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
  if constexpr (std::is_same_v<X, __nv_bfloat16>) {
    SSM_PRODUCT("bf16");
  } else {
    SSM_PRODUCT("f16");
  }
#undef SSM_PRODUCT
}

// Four 8x8 tiles of 16-bit elements to shared memory, as ldmatrix (mma.cuh) reads them.
__device__ __forceinline__ void stmatrix(uint32_t address, const uint32_t (&from)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
}

// How many registers a warp group's threads have from here on.
template <int kCount>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

#undef SSM_EIGHT
#undef SSM_16_NAMES
#undef SSM_24_NAMES
#undef SSM_32_NAMES
#undef SSM_40_NAMES
#undef SSM_48_NAMES
#undef SSM_64_NAMES

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

}  // namespace ssm::cuda
