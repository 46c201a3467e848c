// What blocks hand each other where every step has the same rows (Plan::even), of not_yet (values.cuh) until it is
// written: for each step, *tiles* of 8 rows by 64 bytes, [steps, row tiles, slabs, 8, 64 bytes]. A warp reads a tile at
// once, four whole cache lines. A step of a wide layer takes as long as the second-level cache needs to give every
// block all of h, and what counts there are requests: rows of a matrix, half lines each, take a third longer.
//
// Results go nowhere else while steps run; a kernel of its own then puts them into rows, 16 bytes a lane.
#pragma once

#include "block.cuh"
#include "kernels.h"

namespace lstm_fused::cuda {

// Where a number lies; K columns.
template <class Storage>
struct Exchange {
  static constexpr int slab_columns = slab_bytes / sizeof(Storage), tile = tile_rows * slab_columns;
  Storage* words;
  int row_tiles, slabs;

  __device__ Exchange(Storage* words, int batch, int K)
      : words(words), row_tiles((batch + tile_rows - 1) / tile_rows), slabs((K + slab_columns - 1) / slab_columns) {}

  __device__ std::int64_t step_stride() const { return static_cast<std::int64_t>(row_tiles) * row_tile_stride(); }
  __device__ int row_tile_stride() const { return slabs * tile; }
  // In the first step.
  __device__ Storage* at(int row, int column) const {
    return words + rows_before(row / tile_rows, row_tile_stride()) + column / slab_columns * tile +
           row % tile_rows * slab_columns + column % slab_columns;
  }
};

// A warp copies a tile at a time.
template <class Storage>
__global__ void __launch_bounds__(threads) untile_kernel(const TilesArgs<Storage> a) {
  constexpr int lane_columns = 16 / sizeof(Storage);
  const int T = static_cast<int>(a.sequence.steps), B = static_cast<int>(a.sequence.batch), K = a.gates * a.H;
  const Exchange<const Storage> exchange(a.words, B, K);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t tiles = static_cast<std::int64_t>(T) * exchange.row_tiles * exchange.slabs;
  for (std::int64_t i = blockIdx.x * warps + threadIdx.x / 32; i < tiles; i += gridDim.x * warps) {
    const int slab = static_cast<int>(i % exchange.slabs), tile_of_rows = static_cast<int>(i / exchange.slabs);
    const int step = tile_of_rows / exchange.row_tiles, row = tile_of_rows % exchange.row_tiles * tile_rows + lane / 4;
    const int column = slab * exchange.slab_columns + lane % 4 * lane_columns;
    if (row >= B || column >= K) continue;
    const int time = a.last_first == a.sequence.reverse ? step : T - 1 - step;
    const int gate = a.order >> 4 * (column / a.H) & 15;
    Storage* const to = a.rows + rows_before(time * B + row, static_cast<int>(a.ld)) + gate * a.H + column % a.H;
    *reinterpret_cast<uint4*>(to) = reinterpret_cast<const uint4*>(a.words)[i * 32 + lane];
  }
}

}  // namespace lstm_fused::cuda
