#include "ssm/core/parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <condition_variable>
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

// Workers spin for a bounded time between regions (a model step has many short ones), then sleep: a CPU
// shared with another program is given away instead of burnt.
constexpr int kSpins = 2000;

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
    const int64_t pieces = (n + grain - 1) / grain;
    std::unique_lock caller(caller_, std::try_to_lock);
    if (inside_parallel || threads() == 1 || pieces <= 1 || !caller.owns_lock()) {
      fn(context, 0, n);  // also when another thread of the program is using the pool
      return;
    }
    start();
    // A few pieces a thread: a thread that lost its CPU holds up only one of them.
    const int64_t per_claim = std::max<int64_t>(1, pieces / (4 * threads_)) * grain;
    job_ = {context, fn, n, per_claim};
    next_.store(0, std::memory_order_relaxed);
    pending_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard lock(mutex_);
      wake_.notify_all();
    }
    work();
    for (int spin = 0; pending_.load(std::memory_order_acquire) != 0; ++spin) {
      if (spin < kSpins)
        cpu_pause();
      else
        wait_done();
    }
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  struct Job {
    void* context = nullptr;
    detail::RangeFn fn = nullptr;
    int64_t n = 0;
    int64_t step = 1;
  };

  void work() {
    inside_parallel = true;
    try {
      for (int64_t begin; (begin = next_.fetch_add(job_.step, std::memory_order_relaxed)) < job_.n;) {
        job_.fn(job_.context, begin, std::min(begin + job_.step, job_.n));
      }
    } catch (...) {
      std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      next_.store(job_.n, std::memory_order_relaxed);
    }
    inside_parallel = false;
  }

  void worker(uint64_t seen) {
    for (;;) {
      for (int spin = 0; generation_.load(std::memory_order_acquire) == seen; ++spin) {
        if (spin < kSpins) {
          cpu_pause();
          continue;
        }
        std::unique_lock lock(mutex_);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_seq_cst) != seen; });
        sleepers_.fetch_sub(1, std::memory_order_relaxed);
      }
      ++seen;
      if (stopping_.load(std::memory_order_acquire)) return;
      work();
      if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        std::lock_guard lock(mutex_);
        done_.notify_one();
      }
    }
  }

  void wait_done() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return pending_.load(std::memory_order_acquire) == 0; });
  }

  void start() {
    while (static_cast<int>(workers_.size()) < threads_ - 1) {
      workers_.emplace_back([this, seen = generation_.load()] { worker(seen); });
    }
  }

  void stop() {
    stopping_.store(true, std::memory_order_release);
    {
      std::lock_guard lock(mutex_);
      generation_.fetch_add(1, std::memory_order_seq_cst);
      wake_.notify_all();
    }
    for (std::thread& t : workers_) t.join();
    workers_.clear();
    stopping_.store(false, std::memory_order_release);
  }

  std::mutex caller_;  // one region at a time
  int threads_ = 0;
  std::vector<std::thread> workers_;
  Job job_;
  std::atomic<int64_t> next_{0};
  std::atomic<int> pending_{0};
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::exception_ptr error_;
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
