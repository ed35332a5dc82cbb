// Tiles of matrices copied by the tensor memory accelerator (compute capability 9.0 and later): one thread
// asks for a tile, which comes into shared memory as the panels of wgmma.cuh and counts its bytes off a
// barrier. What lies outside of the matrix comes as zeros, and counts like the rest.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "ssm/core/cuda.h"
#include "ssm/core/tensor.h"

namespace ssm::cuda {

inline constexpr int kTileColumns = 64;  // of 16 bits: the 128 bytes of a panel's row

// Tiles of [rows, kTileColumns] of t [., .] of 16 bits, whose rows are multiples of 16 bytes (in_packs).
inline CUtensorMap tile_map(const Tensor& t, int rows) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    SSM_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                    cudaEnableDefault, &found));
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  CUtensorMap map;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(t.size(1)), static_cast<cuuint64_t>(t.size(0))};
  const cuuint64_t stride = 2 * static_cast<cuuint64_t>(t.size(0) > 1 ? t.stride(0) : t.size(1));
  const cuuint32_t tile[2] = {kTileColumns, static_cast<cuuint32_t>(rows)}, steps[2] = {1, 1};
  const CUresult made = encode(
      &map, t.dtype() == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
      const_cast<std::byte*>(t.raw()), sizes, &stride, tile, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  check(made == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue, "cuTensorMapEncodeTiled");
  return map;
}

#if __CUDA_ARCH__ >= 900

// The tile whose first element is (row, column), to `to` (a multiple of 1024).
__device__ __forceinline__ void copy_tile(uint32_t to, const CUtensorMap& map, int row, int column,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
      "[%4];" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
// To the same place, and off the same barrier, of every block of the cluster whose bit is set in `blocks`.
__device__ __forceinline__ void copy_tile_to(uint16_t blocks, uint32_t to, const CUtensorMap& map, int row,
                                             int column, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(blocks)
      : "memory");
}

#endif

}  // namespace ssm::cuda
