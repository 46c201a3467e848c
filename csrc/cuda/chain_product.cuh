// The product of a step by tensor cores where every step has the same rows (Plan::even): a block's weights stay in
// registers, each warp has one chain (tensor_product.cuh) of all its tiles, and blocks await each other's results word
// by word, in an exchange.
//
// Backward, a wide plan has the two sides of an instruction swapped: rows of two tiles of the exchange where else 16
// units are, and 8 units where else rows are.
#pragma once

#include "block.cuh"
#include "exchange.cuh"

namespace lstm_fused::cuda {

// A lane's items: a unit, and of the block's rows, from one on, those that are so many apart.
template <int items, int rows_apart>
struct Items {
  int unit, end_unit, row, end_row;

  __device__ bool has(int i) const { return unit < end_unit && row + i * rows_apart < end_row; }
  // f(i) for those that exist.
  template <class F>
  __device__ void each(const F& f) const {
#pragma unroll
    for (int i = 0; i < items; ++i)
      if (has(i)) f(i);
  }
  // Elements from the first one to the i-th, in a matrix whose rows are so long, and in an exchange.
  __device__ static std::int64_t offset(int i, std::int64_t ld) { return i * rows_apart * ld; }
  template <class Storage>
  __device__ static int offset(int i, const Exchange<Storage>& exchange) {
    return i * (rows_apart / tile_rows) * exchange.row_tile_stride();
  }
};

// `group`: slabs that are awaited together, a warp having two such groups of them under way, or all that there are.
template <class Storage, int per_unit, int gates, bool wide, int group>
class ChainProduct {
  static constexpr int lane_columns = 16 / sizeof(Storage), slab_columns = 4 * lane_columns;
  static constexpr bool swapped = wide && per_unit == 1;
  static constexpr int halves = swapped ? 1 : 2, parts = swapped ? 2 : 1;  // of 8 weight rows, of 8 rows
  static constexpr int tile_units = 8 * halves / per_unit, rows_of_tile = parts * tile_rows;
  static constexpr int most_tiles = chain_tiles(per_unit, wide), most_slabs = chain_slabs(per_unit, gates, wide);
  static constexpr int groups = most_slabs / group, under_way = groups > 1 ? 2 : 1;
  static_assert(most_slabs % group == 0);
  // Warps that have a row tile's items, and row tiles that all warps have at once.
  static constexpr int tile_warps = per_unit > 1 ? most_tiles : 4, tiles_at_once = warps / tile_warps;
  static_assert(tiles_at_once * rows_of_tile == rows_apart(wide));

 public:
  static constexpr int neighbour = per_unit > 1 ? 8 : 4;  // lanes to the one with the other unit of a pair

  __device__ ChainProduct(const Weights<Storage>& weights, const Plan& plan, const Range& rows,
                          const Exchange<Storage>& exchange)
      : exchange(exchange),
        tiles(static_cast<int>((plan.units_per_block + tile_units - 1) / tile_units)),
        slabs(max(0, ((weights.K + slab_columns - 1) / slab_columns - warp + chains - 1) / chains)),
        row_tiles((rows.end - rows.begin + rows_of_tile - 1) / rows_of_tile),
        exchange_tiles((rows.end - rows.begin + tile_rows - 1) / tile_rows),
        from(exchange.at(rows.begin, warp * slab_columns) + lane * lane_columns) {
    const int first = warp * slab_columns + lane % 4 * lane_columns;
#pragma unroll
    for (int tile = 0; tile < most_tiles; ++tile)
#pragma unroll
      for (int i = 0; i < most_slabs; ++i)
#pragma unroll
        for (int half = 0; half < halves; ++half) {
          const int n = lane / 4, unit = weights.begin + tile * tile_units, k = first + i * chains * slab_columns;
          const Storage* const row = !has_tile(tile) ? nullptr
                                     : per_unit > 1  ? weights.row(unit + n / 2, n % 2 * 2 + half)
                                                     : weights.row(unit + n + 8 * half, 0);
          held[tile][i][half] =
              row && k < weights.K ? rounded<Storage>(*reinterpret_cast<const uint4*>(row + k)) : uint4{};
        }
  }

  // The lane's items, as sums gives them: the warps of a row tile's items take row tiles in turn.
  template <int items>
  __device__ Items<items, rows_apart(wide)> of_lane(const Range& units, const Range& rows) const {
    const int w = warp % tile_warps;
    const int unit = per_unit > 1 ? w * tile_units + lane / 8 : swapped ? lane % 8 : lane / 4 + w / 2 * 8;
    const int row = per_unit > 1 ? lane % 4 * 2 + lane / 4 % 2 : swapped ? w * 4 + lane / 8 : lane % 4 * 2 + w % 2;
    return {units.begin + unit, units.end, rows.begin + row_tile(0) * rows_of_tile + row, rows.end};
  }
  __device__ bool has(int item) const {
    return row_tile(item) < row_tiles && (per_unit == 1 || warp % tile_warps < tiles);
  }

  // Asks for the next step's results.
  __device__ void ask() {
    fetch(0, 0, x[0]);
    if constexpr (under_way > 1) fetch(0, 1, x[1]);
  }

  // Multiplies what was asked for, when it is there. Called by all warps of a block.
  __device__ void multiply() {
#pragma unroll 1
    for (int r = 0; r < row_tiles; ++r) {
      Chain chain[most_tiles];
#pragma unroll
      for (int g = 0; g < groups; ++g) {
        if (g * group >= slabs) break;
        uint4(&now)[group][parts] = x[g % under_way];
        await(r, g, now);
#pragma unroll
        for (int i = 0; i < group; ++i) {
          if (g * group + i >= slabs) break;
          add(chain, g * group + i, now[i]);
        }
        if (g + 2 < groups && (g + 2) * group < slabs) fetch(r, g + 2, now);
        else fetch(r + 1, g % under_way, now);
      }
      put(r, chain);
    }
    from += exchange.step_stride();
    __syncthreads();
  }

  // The sums of the lane's i-th item. Called by all lanes of a warp that has one.
  __device__ void sums(int i, float (&result)[per_unit]) const {
    const int place = warp % tile_warps * 32 + lane;
    if constexpr (per_unit > 1) {
      const float4* const part = partials(row_tile(i)) + place;
      float4 of[chains];
#pragma unroll
      for (int c = 0; c < chains; ++c) of[c] = part[c * most_tiles * 32];
      const float total[4] = {
          sum_of_chains([&](int c) { return of[c].x; }), sum_of_chains([&](int c) { return of[c].y; }),
          sum_of_chains([&](int c) { return of[c].z; }), sum_of_chains([&](int c) { return of[c].w; })};
      gates_of_unit(total, result);
    } else {
      const float* const part = reinterpret_cast<const float*>(partials(row_tile(i))) + place;
      result[0] = sum_of_chains([&](int c) { return part[c * most_tiles * 32 * 4]; });
    }
  }

  __device__ bool has_tile(int tile) const { return most_tiles == 1 || tile < tiles; }

 private:
  // The row tile of the lane's i-th item.
  __device__ int row_tile(int i) const { return warp / tile_warps + i * tiles_at_once; }

  // A group's fragments of a row tile: each lane 16 bytes of row lane / 4, and of that 8 further.
  __device__ void fetch(int r, int g, uint4 (&x)[group][parts]) const {
    if (r >= row_tiles) return;
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      const bool exists = part == 0 || r * parts + part < exchange_tiles;
      const Storage* const at = from + (r * parts + part) * exchange.row_tile_stride();
#pragma unroll
      for (int i = 0; i < group; ++i) {
        const int own = g * group + i;
        if (own < slabs) x[i][part] = exists ? load_fresh_words(at + own * (chains * exchange.tile)) : uint4{};
      }
    }
  }
  __device__ void await(int r, int g, uint4 (&x)[group][parts]) const {
    for (;;) {
      unsigned most = 0;
#pragma unroll
      for (int i = 0; i < group; ++i)
#pragma unroll
        for (const uint4& words : x[i])
          if (g * group + i < slabs) most = max(most, max(max(words.x, words.y), max(words.z, words.w)));
      if (most != not_yet) break;
      fetch(r, g, x);
    }
    __syncwarp();
  }

  __device__ void add(Chain (&chain)[most_tiles], int slab, const uint4 (&x)[parts]) const {
    uint4 source[parts];
#pragma unroll
    for (int part = 0; part < parts; ++part) source[part] = rounded<Storage>(x[part]);
#pragma unroll
    for (int tile = 0; tile < most_tiles; ++tile) {
      const auto& own = held[tile][slab];
      if constexpr (swapped) chain[tile].add(Storage{}, source[0], source[1], own[0]);
      else if (has_tile(tile)) chain[tile].add(Storage{}, own[0], own[1], source[0]);
    }
  }

  // Of a row tile the warps' chains: [chains, most_tiles, 32] of four sums, backward [chains, 4, 32], swapped [chains,
  // 16 rows, 8 units].
  __device__ float4* partials(int r) const {
    return reinterpret_cast<float4*>(shared_memory) + r * (chains * most_tiles * 32);
  }
  __device__ void put(int r, const Chain (&chain)[most_tiles]) const {
    float4* const part = partials(r) + warp * (most_tiles * 32);
#pragma unroll
    for (int tile = 0; tile < most_tiles; ++tile) {
      if (!has_tile(tile)) break;
      if constexpr (per_unit > 1)
        part[tile * 32 + lane] = {chain[tile].sum(0), chain[tile].sum(1), chain[tile].sum(2), chain[tile].sum(3)};
      else
#pragma unroll
        for (int j = 0; j < 4; ++j)
          reinterpret_cast<float*>(part)[swapped ? j / 2 * 64 + lane * 2 + j % 2 : j * 32 + lane] = chain[tile].sum(j);
    }
  }

  const Exchange<Storage> exchange;
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0), lane = static_cast<int>(threadIdx.x) % 32;
  const int tiles, slabs, row_tiles, exchange_tiles;  // slabs: this warp's
  uint4 held[most_tiles][most_slabs][halves], x[under_way][group][parts];
  const Storage* from;  // of the next step
};

}  // namespace lstm_fused::cuda
