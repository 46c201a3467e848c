// Which plan a layer's recurrence takes, by its shape, the current device and torch's settings, and what it says.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>

#include "../checks.h"
#include "kernels.h"
#include "stream.h"

namespace lstm_fused::cuda {

inline std::string forced_plan() {
  const char* const name = std::getenv("LSTM_FUSED_CUDA_PLAN");
  return name ? name : "";
}

template <class Storage>
Plan plan_for(const LayerShape& shape, bool backward) {
  TORCH_CHECK(std::max(shape.N, shape.S * shape.H) <= std::numeric_limits<int>::max(),
              "lstm_fused: expected fewer than 2^31 data rows, and gates of all units, on a GPU");
  const bool even = !shape.batch_sizes && !shape.device_batch_sizes.defined() && !shape.resets.before.defined();
  const Shape all = {shape.T,        shape.B, shape.H, shape.G, sizeof(Storage), sizeof(compute_t<Storage>),
                     tf32_allowed(), even,    shape.I};
  try {
    return choose_plan(all, current_device(), backward, forced_plan());
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK(false, "LSTM_FUSED_CUDA_PLAN: ", error.what());
  }
}

// Forward of an even plan, of the steps [begin, end) in the direction of time alone: from c, and h_n as those before
// begin left it.
template <class Storage>
ForwardArgs<Storage> of_steps(ForwardArgs<Storage> a, std::int64_t begin, std::int64_t end) {
  const std::int64_t steps = a.sequence.steps, batch = a.sequence.batch;
  const std::int64_t row = (a.sequence.reverse ? steps - end : begin) * batch;
  a.sequence.steps = end - begin;
  a.input_gates += row * a.input_ld;
  if (a.saved) a.saved += row * a.input_ld;
  if (a.cells) a.cells += row * a.H;
  a.output += row * a.output_ld;
  a.exchange += exchange_elements<Storage>(begin, batch, a.H);
  if (begin > 0) a.h0 = a.h_n;
  return a;
}

inline void check_launch(const std::string& error, const char* direction, const LayerShape& s, const Plan& plan) {
  TORCH_CHECK(error.empty(), "lstm_fused: ", direction, " of ", s.cell, " (plan ", plan.describe(), "; T=", s.T,
              " B=", s.B, " H=", s.H, "): ", error);
}

// Whether blocks need no order to meet: where they await each other's results as words that say whether they are there.
inline bool by_hint(const LayerShape& shape, const Plan& plan) {
  return plan.tensor && plan.kind == Kind::grid && plan.aligned && !plan.even && !shape.device_batch_sizes.defined();
}

}  // namespace lstm_fused::cuda
