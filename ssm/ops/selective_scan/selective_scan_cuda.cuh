// What the scan's kernels share: their operands, and states of any storage type.
#pragma once

#include "ssm/ops/cuda/batch.cuh"
#include "ssm/ops/cuda/math.cuh"
#include "ssm/ops/cuda/vectors.cuh"
#include "ssm/ops/selective_scan/selective_scan_cuda.h"

namespace ssm::cuda {

inline constexpr int kMaxStates = 256;

struct SelectiveScanOperands {
  const void *u, *delta, *z, *B, *C;  // of one type; z null without a gate
  void* y;
  int64_t u_stride, delta_stride, z_stride, B_stride, C_stride, y_stride;
  const float* A;
  int64_t A_channel_stride, A_state_stride;
  const float *D, *delta_bias;  // or null
  bool delta_softplus;
  void* state;  // [S, N, E], or null
  DType state_type;
  int64_t E;
  int N;
  Batch batch;
};

// Element i of a state of any type: read and written once a chunk, so the type is looked at each time.
__device__ __forceinline__ float load_state(const void* state, DType type, int64_t i) {
  if (type == DType::bf16) return to_f32(static_cast<const __nv_bfloat16*>(state)[i]);
  if (type == DType::f16) return to_f32(static_cast<const __half*>(state)[i]);
  return static_cast<const float*>(state)[i];
}
__device__ __forceinline__ void store_state(void* state, DType type, int64_t i, float h) {
  if (type == DType::bf16) {
    static_cast<__nv_bfloat16*>(state)[i] = from_f32<__nv_bfloat16>(h);
  } else if (type == DType::f16) {
    static_cast<__half*>(state)[i] = from_f32<__half>(h);
  } else {
    static_cast<float*>(state)[i] = h;
  }
}

// All of the operands but y and the state.
SelectiveScanOperands scan_operands(const SelectiveScanArgs& args, const SequenceBatch& batch);

void selective_scan_forward(const SelectiveScanOperands& s, DType type, int64_t longest);
void selective_scan_step(const SelectiveScanOperands& s, DType type);  // one token a sequence

}  // namespace ssm::cuda
