// parallel_for over a fixed pool of threads. Which thread runs which piece is not fixed, so a body must
// compute each index the same way whoever runs it; then results do not depend on the thread count.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace ssm {

int num_threads();  // at least 1; at first OMP_NUM_THREADS, else the number of CPUs this process may use
void set_num_threads(int n);  // 0 restores that; not while a parallel_for runs

namespace detail {
using RangeFn = void (*)(void* context, int64_t begin, int64_t end);
void parallel_for(int64_t n, int64_t grain, void* context, RangeFn fn);
}  // namespace detail

// Calls body(begin, end) on disjoint ranges that cover [0, n), each a multiple of `grain` long but the last.
// An exception thrown by a body is rethrown here. A nested call runs on the calling thread.
template <class Body>
void parallel_for(int64_t n, int64_t grain, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  detail::parallel_for(
      n, grain, const_cast<std::remove_const_t<Plain>*>(std::addressof(body)),
      [](void* context, int64_t begin, int64_t end) { (*static_cast<Plain*>(context))(begin, end); });
}

}  // namespace ssm
