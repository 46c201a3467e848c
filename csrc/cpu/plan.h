// How a recurrence is split over threads: a pure function of its shape and the machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "share.h"

namespace lstm_fused {

inline std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

struct RecurrenceShape {
  std::int64_t steps, batch, hidden, recurrent;  // T, B, H, P
  int gates;                                     // G
  int directions;                                // D
  int element_bytes;                             // of the compute type
  int lanes;                                     // of the instruction set, for that type
  int panel_units;                               // smallest share of units
  bool projected;                                // one more product and barrier a step
  std::int64_t exchanged;  // values of a row that every unit's product reads: P, or G*H backward
  const std::int64_t* batch_sizes = nullptr;  // as Sequence's
};

struct Machine {
  int threads;
  std::int64_t l1_bytes, l2_bytes, l3_bytes;  // L1 and L2 of a core; L3 shared
};

// A grid of workers. Directions and rows run without meeting; units meet at a barrier every step.
struct Plan {
  int directions = 1, rows = 1, units = 1;
  int threads() const { return directions * rows * units; }
  std::string describe() const;
};

Machine this_machine(int threads);

// Estimated nanoseconds of the recurrence under a plan; the cost model in full is in docs/cpu-plans.md.
double estimate(const RecurrenceShape& shape, const Machine& machine, const Plan& plan);

// The plan of least estimated time, or the one that `forced` names: "rows", "units" or "serial".
Plan choose_plan(const RecurrenceShape& shape, const Machine& machine, const std::string& forced);

// From how many of a worker's rows on W x is best computed in their step, beside U h, and not for several steps ahead:
// where so many rows share a reading of W that this costs less than W x on its way through memory.
std::int64_t rows_for_input_in_step(const RecurrenceShape& shape, const Machine& machine, const Plan& plan,
                                    std::int64_t inputs);

// How long workers wait for one another before they take the missing one to have lost its core. `apart_ns` is what one
// of them does between two meetings beside a step: packing, or the input's product.
std::int64_t patience_ns(const RecurrenceShape& shape, const Plan& plan, double apart_ns);

// Estimated nanoseconds of so many multiply-adds on one thread.
double product_ns(double multiply_adds, int lanes);

// The rows of each of so many groups of workers, so that all have about as much to do.
using DealtRows = std::vector<std::vector<std::int64_t>>;
DealtRows deal_rows(const RecurrenceShape& shape, int groups);

// The part of worker `member` (of plan.threads()) within its direction. `rows`: dealt to plan.rows groups; it points
// into them.
Share share_of(const Plan& plan, int member, const RecurrenceShape& shape, const DealtRows& rows, int panel_units,
               int panel_outputs);

}  // namespace lstm_fused
