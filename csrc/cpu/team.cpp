#include "team.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <limits>

#ifdef LSTM_FUSED_STD_THREADS  // sanitizers do not see into OpenMP's synchronisation
#include <thread>
#include <vector>
#else
// The OpenMP runtime that torch has loaded, called by name. The compilers' own OpenMP would do where that is the
// compiler's; but g++ and clang call different runtimes, and a second one in the process fights with the first. LLVM's
// and Intel's have these entries, too.
extern "C" {
void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned flags);
int omp_get_thread_num();
int omp_get_num_threads();
int omp_in_parallel();
}
#endif

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace lstm_fused {

namespace {

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Decaying states pass through the subnormal range, where many processors are a hundred times slower.
class FlushSubnormals {
#if defined(__x86_64__)
 public:
  FlushSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }  // flush to zero, denormals are zero
  ~FlushSubnormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

std::int64_t now_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

// When a team may be tried again, and the pause before that; both in nanoseconds, races between callers do no harm.
std::atomic<std::int64_t> try_again{0}, pause_length{0};

void note_disturbance(std::int64_t lost_ns) {
  constexpr std::int64_t bearable = 16;          // teams gain more than one part in so many of their time
  constexpr std::int64_t longest = 256'000'000;  // a blink
  const std::int64_t now = now_ns(), since = now - try_again;
  if (since < 0) return;  // the same one, seen by another thread
  const std::int64_t pause = std::min(std::max(4 * lost_ns, 2 * pause_length), longest);
  pause_length = since > bearable * lost_ns ? 0 : pause;
  try_again = now + pause_length;
}

std::atomic<bool> forked{false};
const int register_fork_handler = pthread_atfork(nullptr, nullptr, [] { forked = true; });

// Spins, then yields. Returns 0, or the time that was waited if that is more than the patience: because of the others,
// or because this thread did not get its core back.
template <class Done>
std::int64_t wait_until(Done done, std::int64_t patience_ns) {
  // About 10 to 20 us of spinning: far above the imbalance of a small step, far below a scheduler's time slice.
  for (int spin = 0; spin < 500; ++spin) {
    if (done()) return 0;
    pause_briefly();
  }
  const std::int64_t begin = now_ns();
  for (std::int64_t now = begin; now < begin + patience_ns; now = now_ns()) {
    if (done()) return 0;
    sched_yield();
  }
  return std::max<std::int64_t>(now_ns() - begin, 1);
}

}  // namespace

void Barrier::reset(int members, std::int64_t patience_ns, double alone_ns) {
  members_ = members;
  patience_ns_ = patience_ns;
  alone_ns_ = static_cast<std::int64_t>(alone_ns);
}

int Barrier::gather(int member) {
  constexpr int closed = 1 << 30;
  if (members_ == 1) return nobody;
  int there = gathered_.load(std::memory_order_acquire);
  do {
    if (there >= closed) return somebody;
  } while (!gathered_.compare_exchange_weak(there, there + 1, std::memory_order_acq_rel));
  const auto all = [&] { return (there = gathered_.load(std::memory_order_acquire)) >= members_; };
  const std::int64_t waited = wait_until(all, patience_ns_);
  while (there < members_)
    if (gathered_.compare_exchange_weak(there, closed, std::memory_order_acq_rel)) {
      note_disturbance(waited);
      return member;
    }
  return there == members_ ? nobody : somebody;
}

void Barrier::wait_for_others(int member) {
  const int generation = generation_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == members_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    alone_.store(waiting_.load(std::memory_order_relaxed), std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    return;
  }
  const auto passed = [&] { return generation_.load(std::memory_order_acquire) != generation; };
  const std::int64_t waited = wait_until(passed, patience_ns_);
  if (waited == 0) return;
  const std::int64_t lost = lost_ns_.fetch_add(waited, std::memory_order_relaxed) + waited;
  int first = nobody;
  if (!passed() && waiting_.compare_exchange_strong(first, member, std::memory_order_relaxed)) {
    note_disturbance(time_slice_ns);
  } else if (lost > alone_ns_) {
    note_disturbance(lost);
  }
  while (!passed()) sched_yield();
}

void Barrier::part(bool went_on) {
  if (went_on) {
    finished_.store(1);  // sequentially consistent: notify_all looks for sleepers, and must not look before the store
    finished_.notify_all();
  } else {
    finished_.wait(0, std::memory_order_acquire);
  }
}

bool contended() { return now_ns() < try_again.load(std::memory_order_relaxed); }

bool in_forked_child() { return forked.load(std::memory_order_relaxed); }

void run_team(int wanted, double alone_ns, const std::function<void(int, int)>& work) {
  constexpr std::int64_t never = std::numeric_limits<std::int64_t>::max();
  std::atomic<std::int64_t> first_end{never};
  const auto member = [&](int id, int members) {
    const FlushSubnormals flush;
    work(id, members);
    std::int64_t not_ended = never;
    first_end.compare_exchange_strong(not_ended, now_ns(), std::memory_order_relaxed);
  };
#ifdef LSTM_FUSED_STD_THREADS
  std::vector<std::thread> others;
  for (int id = 1; id < wanted; ++id) others.emplace_back([&, id] { member(id, wanted); });
  member(0, wanted);
  for (std::thread& thread : others) thread.join();
#else
  if (wanted <= 1 || in_forked_child() || omp_in_parallel()) return member(0, 1);
  const auto enter = [](void* data) {
    (*static_cast<decltype(&member)>(data))(omp_get_thread_num(), omp_get_num_threads());
  };
  GOMP_parallel(enter, const_cast<void*>(static_cast<const void*>(&member)), static_cast<unsigned>(wanted), 0);
#endif
  const std::int64_t waited = now_ns() - first_end;
  if (waited > least_patience_ns + static_cast<std::int64_t>(alone_ns)) note_disturbance(waited);
}

}  // namespace lstm_fused
