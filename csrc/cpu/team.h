// Threads of a recurrence: a team from PyTorch's own OpenMP pool and the barrier between its members.
#pragma once

#include <atomic>
#include <functional>

namespace lstm_fused {

// All members must arrive before any goes on. A waiting thread spins briefly, then yields its core: with
// more threads than cores the one it waits for may be the one that it keeps from running.
class Barrier {
 public:
  explicit Barrier(int members = 1) : members_(members) {}
  void reset(int members);
  void wait() {
    if (members_ > 1) wait_for_others();
  }

 private:
  void wait_for_others();

  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> generation_{0};
  int members_;
};

// Calls work(member, members) on up to `wanted` threads at once. `members` is how many came: fewer inside
// another parallel region, and one in a forked child, where the parent's pool does not exist any more.
void run_team(int wanted, const std::function<void(int member, int members)>& work);

// In a forked child every thread pool is gone; nothing may start one.
bool in_forked_child();

}  // namespace lstm_fused
