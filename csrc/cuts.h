// Resets in ATen operations: the state of rows that begin anew, and its gradient.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "recurrence.h"

namespace lstm_fused {

// Of one direction. States are [B, *], whatever follows.
struct Cuts {
  at::Tensor resets;               // bool [T, B]; undefined: none
  std::vector<at::Tensor> states;  // of a row that begins anew: [*]; none: zero

  // State number i before step t, from that after the step before.
  at::Tensor before(const Sequence& time, std::int64_t t, const at::Tensor& state, std::size_t i) const {
    const at::Tensor rows = begin_anew(time, t, state);
    if (!rows.defined()) return state;
    return states.empty() ? state.masked_fill(rows, 0) : at::where(rows, states[i], state);
  }
  // Takes the gradients of states that begin anew at step t out of d_state, and adds them to d_reset.
  void give(const Sequence& time, std::int64_t t, at::Tensor& d_state, at::Tensor& d_reset) const {
    const at::Tensor rows = begin_anew(time, t, d_state);
    if (!rows.defined()) return;
    d_reset = d_reset + d_state.masked_fill(rows.logical_not(), 0);
    d_state = d_state.masked_fill(rows, 0);
  }

 private:
  // Which rows do, as Sequence::begins_anew has it, [B, 1...] as `state` has dimensions; undefined: none.
  at::Tensor begin_anew(const Sequence& time, std::int64_t t, const at::Tensor& state) const {
    const std::int64_t at = time.reverse ? t + 1 : t;
    if (!resets.defined() || at == time.steps) return {};
    std::vector<std::int64_t> sizes(state.dim(), 1);
    sizes[0] = time.batch;
    return resets.select(0, at).reshape(sizes);
  }
};

}  // namespace lstm_fused
