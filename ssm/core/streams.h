// Beside another library on the same card: the order of its work and ours. A stream is its handle as DLPack
// passes it; 1 and 2 are the driver's default streams, of the process and of the thread.
#pragma once

#include <cstdint>

#include "ssm/core/device.h"

namespace ssm {

uintptr_t stream_of(Device device);                     // where this library's work goes; 0 on the host
void wait_for_stream(Device device, uintptr_t stream);  // what is enqueued here follows what is there now
void let_stream_wait(Device device, uintptr_t stream);  // and the other way round
void synchronize_all(Device device);                    // waits for the work of every stream

}  // namespace ssm
