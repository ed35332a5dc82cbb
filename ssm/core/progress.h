// How far long work is.
#pragma once

#include <cstdint>
#include <functional>

namespace ssm {

// Called between the parts of long work with what is done and all there is to do, in whatever the work
// counts. What it throws ends the work as any failure does.
using OnProgress = std::function<void(int64_t done, int64_t all)>;

}  // namespace ssm
