// Threads of a recurrence: a team from PyTorch's own OpenMP pool and the barrier between its members.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace lstm_fused {

// A wait that ends sooner than this is no sign of another process: far below a scheduler's time slice, and far above an
// interrupt.
constexpr std::int64_t least_patience_ns = 200'000;
// How long another process may keep a core before the scheduler gives it back.
constexpr std::int64_t time_slice_ns = 4'000'000;

// All members must arrive before any goes on. A waiting thread spins briefly, then yields its core: with more threads
// than cores the one it waits for may be the one that it keeps from running. If that is not enough, another process has
// the core, for whole time slices and for many steps to come: then the team breaks up as soon as all have arrived, and
// the one who waited does the rest alone. (Sleeping instead of yielding was tried: the late thread is then moved to the
// waiting one's core, and the two take turns there.)
class Barrier {
 public:
  static constexpr int nobody = -1, somebody = -2;

  // `patience`: how long to wait before the team breaks up, well above the time of a step. `alone_ns`: about
  // what one thread would take for all of it; if more is lost in such waits, the threads count as disturbed, though the
  // team held.
  void reset(int members, std::int64_t patience_ns, double alone_ns);

  // The first meeting, where a member may be long in coming. `nobody` once all are there; or, where
  // patience ends first, one who was waiting goes on alone: it gets its own number, and the others, whenever they come,
  // one that is no member's.
  int gather(int member);

  // `nobody`, or the member that goes on alone: then all others are done.
  int wait(int member) {
    if (members_ > 1 && left_alone() == nobody) wait_for_others(member);
    return left_alone();
  }
  // The end of a team that broke up. The others sleep until the one who went on is done: awake, they might take its
  // processor only to wait for it elsewhere.
  void part(bool went_on);

  int left_alone() const { return alone_.load(std::memory_order_relaxed); }

 private:
  void wait_for_others(int member);

  std::atomic<int> gathered_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> generation_{0};
  std::atomic<int> alone_{nobody};    // decided by the last to arrive, read by all after it
  std::atomic<int> waiting_{nobody};  // the first that ran out of patience
  std::atomic<int> finished_{0};
  std::atomic<std::int64_t> lost_ns_{0};
  int members_ = 1;
  std::int64_t patience_ns_ = 0, alone_ns_ = 0;
};

// Calls work(member, members) on up to `wanted` threads at once. `members` is how many came: fewer inside
// another parallel region, and one in a forked child, where the parent's pool does not exist any more. `alone_ns`:
// about what one thread would take for all of it. Where one waits longer than that for another at the end, the threads
// count as disturbed.
void run_team(int wanted, double alone_ns, const std::function<void(int member, int members)>& work);

// Whether teams broke up or ended late just now, so that threads which wait for one another are not worth having. The
// answer is yes for a few milliseconds after the first time, and for longer each time that happens again soon after.
bool contended();

// In a forked child every thread pool is gone; nothing may start one.
bool in_forked_child();

}  // namespace lstm_fused
