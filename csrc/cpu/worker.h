// One member of a team that shares a recurrence: its part of the rows and units, and how it meets the others.
#pragma once

#include <algorithm>

#include "../recurrence.h"
#include "share.h"
#include "team.h"

namespace lstm_fused::LSTM_FUSED_TARGET {

class Worker {
 protected:
  Worker(const Share& share, Barrier& barrier, std::int64_t H, std::int64_t P)
      : share(share), barrier(barrier), H(H), P(P) {}

  // Both are false where this worker is done, because the team broke up and another member does the rest alone.
  bool start() { return carry_on(barrier.left_alone()); }
  bool meet() { return carry_on(barrier.wait(share.member)); }

  // This worker's rows among the first `all`, and the j-th of them.
  std::int64_t my_rows(std::int64_t all) const {
    const std::int64_t *const begin = share.rows, *const end = begin + share.row_count;
    return begin == end || end[-1] < all ? share.row_count : std::lower_bound(begin, end, all) - begin;
  }
  std::int64_t row(std::int64_t j) const { return share.rows[j]; }

  Share share;

 private:
  // Between two barriers nobody keeps anything of a step to itself, so whoever is left can take over all units.
  bool carry_on(int alone) {
    if (alone == Barrier::nobody) return true;
    share.unit_begin = share.projected_begin = 0;
    share.unit_end = H;
    share.projected_end = P;
    return alone == share.member;
  }

  Barrier& barrier;
  const std::int64_t H, P;
};

}  // namespace lstm_fused::LSTM_FUSED_TARGET
