// What the kernels of ssd_scan share.
//
// A call's tokens are cut into segments of `segment` tokens, counted from each sequence's first token and
// numbered as chunks are in ops/cuda/batch.cuh. Where a sequence is one segment, one kernel does it all.
// Elsewhere three run:
//   chunk_state    the state each segment but a sequence's last leaves behind, had it begun at zero
//   state_passing  turns these, along each sequence, into the state each segment begins with
//   chunk_scan     y of every segment, and the state the last one leaves
// chunk_state and chunk_scan have three forms: ssd_scan_recurrence (any type and size), tiles on the tensor
// cores of warps, and on Hopper of warp groups, where sizes suit (ssd_scan_warpgroup).
#pragma once

#include "ssm/core/cuda.h"
#include "ssm/core/launch.cuh"
#include "ssm/ops/cuda/batch.cuh"
#include "ssm/ops/cuda/math.cuh"
#include "ssm/ops/cuda/vectors.cuh"
#include "ssm/ops/ssd_scan/ssd_scan_cuda.h"

namespace ssm::cuda {

// The operands as kernels see them. Strides are in elements.
struct SsdView {
  const void *x, *dt, *B, *C;
  const float *A, *D, *dt_bias;  // D and dt_bias may be null
  void* state;                   // [S, H, N, P], or null
  void* y;
  int64_t x_stride, dt_stride, B_stride, C_stride, y_stride;
  int H, P, G, N;
  bool D_by_channel, dt_softplus;
  float dt_min, dt_max;
  DType dtype, state_dtype;
  Batch batch;
  int64_t slots;                // S
  int64_t segment;              // tokens, a multiple of kSsdTile
  float* segment_states;        // [segments, H, N, P], or null where every sequence is one segment
  float* segment_decays;        // [segments, H]: what is left of a state at the segment's end
  bool state_through_segments;  // a 16-bit state that the tensor cores' kernels find and leave there in f32
};

inline constexpr int kSsdTile = 64;  // tokens that the tensor-core kernels take at a time

// dt' of a raw value and its bias.
__device__ __forceinline__ float ssd_step_size(const SsdView& a, float raw) {
  if (a.dt_softplus) raw = softplus(raw);
  return fminf(fmaxf(raw, a.dt_min), a.dt_max);
}

// One element of an activation, whose type is not a template's.
__device__ __forceinline__ float load_as_f32(const void* from, DType dtype, int64_t at) {
  if (dtype == DType::bf16) return to_f32(static_cast<const __nv_bfloat16*>(from)[at]);
  if (dtype == DType::f16) return to_f32(static_cast<const __half*>(from)[at]);
  return static_cast<const float*>(from)[at];
}

__device__ __forceinline__ void store_from_f32(void* to, DType dtype, int64_t at, float x) {
  if (dtype == DType::bf16) {
    static_cast<__nv_bfloat16*>(to)[at] = from_f32<__nv_bfloat16>(x);
  } else if (dtype == DType::f16) {
    static_cast<__half*>(to)[at] = from_f32<__half>(x);
  } else {
    static_cast<float*>(to)[at] = x;
  }
}

// Where a segment's state begins and ends. One that is all of its sequence reads and writes the slot; others
// read what state_passing left, and a sequence's last writes the slot.
struct SegmentEnds {
  int64_t slot;
  bool whole, last;
};
__device__ __forceinline__ SegmentEnds ends_of(const SsdView& a, const Chunk& segment) {
  const int64_t end = a.batch.offsets[segment.sequence + 1];
  const bool last = segment.end == end;
  return {a.batch.slots[segment.sequence], segment.index == 0 && last, last};
}

// Where a head's state stands when its segment begins, or null for zeros, and where it is left, or null where
// it is not kept. A 16-bit state comes and goes through the workspace.
__device__ __forceinline__ float* in_slot(const SsdView& a, const SegmentEnds& ends, int head) {
  return static_cast<float*>(a.state) + (ends.slot * a.H + head) * (int64_t{a.N} * a.P);
}
__device__ __forceinline__ float* in_workspace(const SsdView& a, int64_t number, int head) {
  return a.segment_states + (number * a.H + head) * (int64_t{a.N} * a.P);
}
__device__ __forceinline__ float* first_state(const SsdView& a, const Chunk& segment, int64_t number,
                                              int head) {
  const SegmentEnds ends = ends_of(a, segment);
  if (!ends.whole || a.state_through_segments) return in_workspace(a, number, head);
  return a.state ? in_slot(a, ends, head) : nullptr;
}
__device__ __forceinline__ float* last_state(const SsdView& a, const Chunk& segment, int64_t number,
                                             int head) {
  const SegmentEnds ends = ends_of(a, segment);
  if (!ends.last || !a.state) return nullptr;
  return a.state_through_segments ? in_workspace(a, number, head) : in_slot(a, ends, head);
}

// The launches; each has its file. The tensor cores' take 16-bit activations and N up to 256.
void launch_ssd_step(const SsdView& a);
void launch_ssd_recurrence(const SsdView& a, bool states_only);
void launch_ssd_chunk_state(const SsdView& a);
void launch_ssd_chunk_scan(const SsdView& a);
// How many blocks walk a segment, and how many the card runs at once.
struct SsdBlocks {
  int64_t per_segment, at_once;
};
SsdBlocks ssd_recurrence_blocks(const SsdView& a);
SsdBlocks ssd_chunk_scan_blocks(const SsdView& a);
// What Hopper's warp groups take of the tensor cores' share.
bool takes_ssd_warpgroups(const SsdView& a);
void launch_ssd_warpgroup_state(const SsdView& a);
void launch_ssd_warpgroup_scan(const SsdView& a);
SsdBlocks ssd_warpgroup_blocks(const SsdView& a);

}  // namespace ssm::cuda
