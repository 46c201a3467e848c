// One member of a team that shares a recurrence: its part of the rows and units, and how it meets the others.
#pragma once

#include <algorithm>

#include "../recurrence.h"
#include "team.h"

namespace lstm_fused::LSTM_FUSED_TARGET {

class Worker {
 protected:
  Worker(const Share& share, Barrier& barrier, std::int64_t H, std::int64_t P)
      : share(share), barrier(barrier), H(H), P(P) {}

  // Both are false where this worker is done, because the team broke up and another member does the rest alone.
  bool start() { return carry_on(barrier.left_alone()); }
  bool meet() { return carry_on(barrier.wait(share.member)); }

  // This worker's rows among the first `all`. Rows are dealt to and fro, 0 1 2 2 1 0 0 1 2 ...: packed ones come with
  // the longest first, and so everyone gets about as many steps.
  std::int64_t my_rows(std::int64_t all) const {
    if (share.row_step == 1) return all;
    const std::int64_t rounds = all / share.row_step;
    return rounds + (row(rounds) < all);
  }
  std::int64_t row(std::int64_t j) const {
    return j * share.row_step + (j % 2 ? share.row_step - 1 - share.first_row : share.first_row);
  }

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
