// How a layer's recurrence is spread over a GPU. The choice is a pure function of shape, type and device.
#pragma once

#include <cstdint>
#include <string>

namespace lstm_fused::cuda {

// What the choice depends on.
struct Device {
  int multiprocessors = 0;
  int shared_per_block = 0;   // bytes, for a block that asks for them
  bool cooperative = false;   // whether blocks can be launched together
  bool tensor_cores = false;  // for 16-bit and tf32 numbers, with sums in float32: from 8.0 on
};

struct Shape {
  std::int64_t T = 0, B = 0, H = 0;
  int gates = 0;
  int storage_bytes = 0, compute_bytes = 0;
  bool tf32 = false;  // products of float32 numbers may be of rounded ones
};

// `block`: a block has some rows and all units, and meets nobody. `grid`: a block has some units of some rows, and
// those that share rows meet after each step; they must be on the device together. `step`: a launch for each step.
enum class Kind { block, grid, step };

inline constexpr int warps = 8, threads = 32 * warps;  // of a block
inline constexpr int weight_rows = 4;                  // that a warp multiplies with at once, without tensor cores
inline constexpr int tile_rows = 16, tile_columns = 8;  // of a tensor core's result: rows of the batch, of the weights
inline constexpr int slab_bytes = 64;  // of a row of either, that two of its instructions take
inline constexpr int chains = 8;  // sums of a product, each of every 8th slab

struct Plan {
  Kind kind = Kind::step;
  bool tensor = false;  // products by tensor cores
  int rows = 1;  // of the batch that a product has at once: 1 or 8, with tensor cores 16
  std::int64_t rows_per_block = 0;  // of the batch
  std::int64_t units_per_block = 0;  // of H
  std::int64_t staged_columns = 0;  // of the source rows that are in shared memory at a time
  bool resident = false;  // the block's rows of the weights stay in shared memory
  bool split = false;  // with tensor cores: each warp has one chain of all tiles, not all of one tile
  // Bytes: from one staged row to the next, and what lies where in shared memory, the staged rows first.
  std::int64_t staged_stride = 0, weights_at = 0, partials_at = 0, shared_bytes = 0;

  std::string describe() const;
};

// `backward`: the product is with U transposed, over the gates of all units. `forced`: "block", "grid", "step" or "".
// Throws std::invalid_argument where a forced plan cannot run.
Plan choose_plan(const Shape& shape, const Device& device, bool backward, const std::string& forced);

// Estimated cycles of a step of the plan: what it is chosen by.
double step_cycles(const Plan& plan, const Shape& shape, const Device& device, bool backward);

}  // namespace lstm_fused::cuda
