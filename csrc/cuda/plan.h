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
  bool even = false;  // every step has the same rows, and none begins anew
  std::int64_t I = 0;  // columns of the input, as far as its product is the layer's
};

// `block`: a block has some rows and all units, keeps their h to itself, and meets nobody. `grid`: a block has some
// units of some rows, and those that share rows meet after each step; they must be on the device together. `step`: a
// launch for each step.
enum class Kind { block, grid, step };

inline constexpr int warps = 8, threads = 32 * warps;  // of a block
inline constexpr int weight_rows = 4;                  // that a warp multiplies with at once, without tensor cores
inline constexpr int tile_rows = 8, tile_weights = 16;  // of a tensor core's result: rows of the batch, of the weights
inline constexpr int split_tensor = 0, tensor = -1;  // in the place of a product's rows: by tensor cores
inline constexpr int slab_bytes = 64;  // of a row of either, that two of its instructions take
inline constexpr int chains = 8;  // sums of a product, each of every 8th slab

// Tiles and slabs of them that a warp can keep in registers: forward, where a unit has 4 rows of the weights, and
// backward, where it has one and they are as many times longer as there are gates. Fewer than there is room for where a
// warp has much else to keep: one chain of all tiles (`split`), and backward all chains of a tile.
constexpr int held_tiles(int per_unit) { return per_unit > 1 ? 4 : 1; }
constexpr int held_slabs(int per_unit, int gates, bool split) {
  if (per_unit > 1) return split ? 3 : 4;
  return 4 * gates - (split ? 4 : 6);
}
// The same where every step has the same rows: of a warp's chain. `wide`: of half as many units,
// with rows that are twice as long.
constexpr int chain_tiles(int per_unit, bool wide) { return per_unit == 1 ? 1 : wide ? 2 : 4; }
constexpr int chain_slabs(int per_unit, int gates, bool wide) {
  return (per_unit > 1 ? 4 : 4 * gates) * (wide ? 2 : 1);
}
constexpr int most_items = 4;  // of a lane there, each in so many further rows of the block:
constexpr int rows_apart(bool wide) { return (wide ? 4 : 2) * tile_rows; }

struct Plan {
  Kind kind = Kind::step;
  bool tensor = false;  // products by tensor cores
  int rows = 1;  // of the batch that a product has at once: 1 or 8, with tensor cores 8
  std::int64_t rows_per_block = 0;  // of the batch
  std::int64_t units_per_block = 0;  // of H
  std::int64_t staged_columns = 0;  // without tensor cores: of the source rows that are in shared memory at a time
  bool aligned = false;  // rows of H elements begin at multiples of 16 bytes
  bool resident = false;  // the block's rows of the weights stay on the multiprocessor: in shared memory, or
  bool held = false;  // with tensor cores, in registers
  bool kept = false;  // the block's own results, which its next step multiplies with, are in shared memory
  bool split = false;  // with tensor cores: each warp has one chain of all tiles, not all of some
  bool even = false;  // of a shape that is, in grid, held and split: blocks meet in an exchange (chain_product.cuh)
  bool wide = false;  // an even plan of few units, see chain_tiles
  std::int64_t first_steps = 0;  // of an even plan in pieces: steps whose input's product comes first; else 0
  // Bytes: from a row of the source to the next, where the block keeps it, and what lies where in shared memory, staged
  // rows first.
  std::int64_t source_stride = 0, source_at = 0, weights_at = 0, partials_at = 0, shared_bytes = 0;

  std::string describe() const;
};

// `backward`: the product is with U transposed, over the gates of all units. `forced`: "block", "grid" (of even steps
// in one piece), "pieces" (in two), "step" or "". Throws std::invalid_argument where a forced plan cannot run.
Plan choose_plan(const Shape& shape, const Device& device, bool backward, const std::string& forced);

// Estimated cycles of a step of the plan: what it is chosen by.
double step_cycles(const Plan& plan, const Shape& shape, const Device& device, bool backward);

}  // namespace lstm_fused::cuda
