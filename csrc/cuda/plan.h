// How a layer's recurrence is spread over a GPU. The choice is a pure function of shape, type and device.
#pragma once

#include <cstdint>
#include <string>

namespace lstm_fused::cuda {

// What the choice depends on.
struct Device {
  int multiprocessors = 0;
  int shared_per_block = 0;  // bytes, for a block that asks for them
  bool cooperative = false;  // whether blocks can be launched together
};

struct Shape {
  std::int64_t T = 0, B = 0, H = 0;
  int gates = 0;
  int storage_bytes = 0, compute_bytes = 0;
};

// `block`: a block has some rows and all units, and meets nobody. `grid`: a block has some units of all rows, and all
// blocks meet after each step; they must be on the device together. `step`: a launch for each step.
enum class Kind { block, grid, step };

inline constexpr int warps = 8, threads = 32 * warps;  // of a block
inline constexpr int weight_rows = 4;                  // that a warp multiplies with at once

struct Plan {
  Kind kind = Kind::step;
  int rows = 1;                      // of the batch that a warp takes at once: 1 or 8
  std::int64_t units_per_block = 0;  // of H
  std::int64_t staged_columns = 0;   // of the source rows that are in shared memory at a time
  bool resident = false;             // the block's rows of the weights stay in shared memory
  std::int64_t shared_bytes = 0;

  std::string describe() const;
};

// `backward`: the product is with U transposed, over the gates of all units. `forced`: "block", "grid", "step" or "".
// Throws std::invalid_argument where a forced plan cannot run.
Plan choose_plan(const Shape& shape, const Device& device, bool backward, const std::string& forced);

}  // namespace lstm_fused::cuda
