// A SequenceBatch as kernels see it.
#pragma once

#include <cstdint>

#include "ssm/ops/sequence_batch.h"

namespace ssm::cuda {

struct Batch {
  const int64_t* offsets;  // [size + 1]
  const int32_t* slots;    // [size]
  int64_t size, total;     // B, T
};

inline Batch view_of(const SequenceBatch& batch, Device device) {
  const SequenceBatch::OnDevice& on = batch.on_device(device);
  return {on.offsets.data<int64_t>(), on.slots.data<int32_t>(), batch.size(), batch.total()};
}

// The sequence that row t belongs to.
__device__ inline int64_t sequence_of(const Batch& batch, int64_t t) {
  int64_t low = 0, high = batch.size - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (batch.offsets[middle] <= t) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Chunks of `length` rows, numbered over the whole batch without a table: chunk c of sequence b is number
// offsets[b] / length + b + c. Numbers are unique and ascend; a few between sequences stand for no chunk.
inline int64_t chunk_numbers(const Batch& batch, int64_t length) { return batch.total / length + batch.size; }

struct Chunk {
  int64_t sequence;    // -1: this number stands for no chunk
  int64_t index;       // within the sequence
  int64_t begin, end;  // rows
};

__device__ inline Chunk chunk_of(const Batch& batch, int64_t number, int64_t length) {
  int64_t low = 0, high = batch.size - 1;  // the last sequence whose first number is at most `number`
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (batch.offsets[middle] / length + middle <= number) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const int64_t index = number - (batch.offsets[low] / length + low);
  const int64_t begin = batch.offsets[low] + index * length, last = batch.offsets[low + 1];
  if (begin >= last) return {-1, 0, 0, 0};
  return {low, index, begin, begin + length < last ? begin + length : last};
}

}  // namespace ssm::cuda
