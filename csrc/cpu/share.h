// A worker's part of a recurrence: rows of the batch, and a range of units (and of outputs of the projection), in
// multiples of the panel widths.
#pragma once

#include <cstdint>

namespace lstm_fused {

struct Share {
  int member = 0;                      // tells it from the others that have the same rows
  const std::int64_t* rows = nullptr;  // [row_count], in order
  std::int64_t row_count = 0;
  std::int64_t unit_begin = 0, unit_end = 0;
  std::int64_t projected_begin = 0, projected_end = 0;
};

}  // namespace lstm_fused
