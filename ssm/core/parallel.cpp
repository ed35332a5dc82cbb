#include "ssm/core/parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace ssm {
namespace {

constexpr int kMaxThreads = 1024;  // that an environment may ask for

int available_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// OMP_NUM_THREADS, or the first number of its list; 0 where it is absent or nonsense.
int threads_of_environment() {
  const char* text = std::getenv("OMP_NUM_THREADS");
  if (text == nullptr) return 0;
  int n = 0;
  const std::string_view value(text);
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), n);
  const bool whole = error == std::errc() && (end == value.data() + value.size() || *end == ',');
  return whole && n > 0 && n <= kMaxThreads ? n : 0;
}

int default_threads() {
  const int asked = threads_of_environment();
  return asked > 0 ? asked : available_cpus();
}

inline void cpu_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

thread_local bool inside_parallel = false;

// Threads spin for a bounded time between regions (a model step has many short ones), then sleep: a CPU
// shared with another program is given away instead of burnt.
constexpr int kSpins = 2000;

// A region ends when its pieces are done, not when every worker has looked at it: a worker that lost its CPU
// before it claimed a piece holds up nobody.
class Pool {
 public:
  ~Pool() { stop(); }

  int threads() {
    if (threads_ == 0) threads_ = default_threads();
    return threads_;
  }

  void resize(int n) {
    std::lock_guard lock(caller_);
    stop();
    threads_ = n;
  }

  void run(int64_t n, int64_t grain, void* context, detail::RangeFn fn) {
    const int64_t grains = (n + grain - 1) / grain;
    std::unique_lock caller(caller_, std::try_to_lock);
    if (inside_parallel || threads() == 1 || grains <= 1 || !caller.owns_lock()) {
      fn(context, 0, n);  // also when another thread of the program is using the pool
      return;
    }
    start();
    // A few pieces a thread: a thread that loses its CPU inside a piece holds up only that one.
    const int64_t step = std::max<int64_t>(1, grains / (kPiecesPerThread * threads_)) * grain;
    job_ = {context, fn, n, step, static_cast<int>((n + step - 1) / step)};
    unfinished_.store(job_.pieces, std::memory_order_relaxed);
    unclaimed_.store(job_.pieces, std::memory_order_seq_cst);  // before notify_all looks for sleepers
    unclaimed_.notify_all();
    work();
    wait_while(unfinished_, [](int left) { return left != 0; });
    if (failed_.exchange(false, std::memory_order_relaxed)) std::rethrow_exception(std::exchange(error_, {}));
  }

 private:
  static constexpr int64_t kPiecesPerThread = 4;
  static constexpr int kStop = -1;

  struct Job {
    void* context = nullptr;
    detail::RangeFn fn = nullptr;
    int64_t n = 0;
    int64_t step = 1;
    int pieces = 0;
  };

  // Waits as long as `waiting` holds for the value; returns the first for which it does not.
  template <class Waiting>
  static int wait_while(const std::atomic<int>& value, const Waiting& waiting) {
    int now;
    for (int spin = 0; waiting(now = value.load(std::memory_order_acquire)); ++spin) {
      if (spin < kSpins)
        cpu_pause();
      else
        value.wait(now, std::memory_order_acquire);
    }
    return now;
  }

  // Claims pieces until there are none. Whoever claims one may read job_: it stays until the piece is done.
  void work() {
    inside_parallel = true;
    int unclaimed = unclaimed_.load(std::memory_order_relaxed);
    while (unclaimed > 0) {
      if (!unclaimed_.compare_exchange_weak(unclaimed, unclaimed - 1, std::memory_order_acquire)) continue;
      run_piece(job_.pieces - unclaimed);
      if (unfinished_.fetch_sub(1, std::memory_order_seq_cst) == 1) unfinished_.notify_one();
      unclaimed = unclaimed_.load(std::memory_order_relaxed);
    }
    inside_parallel = false;
  }

  void run_piece(int64_t piece) {
    if (failed_.load(std::memory_order_relaxed)) return;
    const int64_t begin = piece * job_.step;
    try {
      job_.fn(job_.context, begin, std::min(begin + job_.step, job_.n));
    } catch (...) {
      if (!failed_.exchange(true, std::memory_order_relaxed)) error_ = std::current_exception();
    }
  }

  void start() {
    while (static_cast<int>(workers_.size()) < threads_ - 1) {
      workers_.emplace_back([this] {
        while (wait_while(unclaimed_, [](int left) { return left == 0; }) != kStop) work();
      });
    }
  }

  void stop() {
    unclaimed_.store(kStop, std::memory_order_seq_cst);
    unclaimed_.notify_all();
    for (std::thread& t : workers_) t.join();
    workers_.clear();
    unclaimed_.store(0, std::memory_order_relaxed);
  }

  std::mutex caller_;  // one region at a time
  int threads_ = 0;
  std::vector<std::thread> workers_;
  Job job_;
  // Both are written by all threads, again and again: each has a cache line of its own.
  alignas(64) std::atomic<int> unclaimed_{0};  // pieces; kStop: workers are to end
  alignas(64) std::atomic<int> unfinished_{0};
  alignas(64) std::atomic<bool> failed_{false};
  std::exception_ptr error_;  // of the first piece that failed
};

Pool& pool() {
  static Pool instance;
  return instance;
}

}  // namespace

int num_threads() { return pool().threads(); }
void set_num_threads(int n) { pool().resize(std::max(0, n)); }

void detail::parallel_for(int64_t n, int64_t grain, void* context, RangeFn fn) {
  if (n > 0) pool().run(n, std::max<int64_t>(1, grain), context, fn);
}

}  // namespace ssm
