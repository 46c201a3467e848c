// The product of a step by tensor cores where every step has the same rows (Plan::even): a block's weights stay in
// registers, each warp has one chain (tensor_product.cuh) of all its tiles, and blocks await each other's results word
// by word, in an exchange.
#pragma once

#include "block.cuh"
#include "exchange.cuh"

namespace lstm_fused::cuda {

// A lane's items: a unit, and of the block's rows every 16th from one on.
template <int items>
struct Items {
  static constexpr int rows_apart = 2 * tile_rows;
  int unit, end_unit, row, end_row;

  __device__ bool has(int i) const { return unit < end_unit && row + i * rows_apart < end_row; }
  // f(i) for those that exist.
  template <class F>
  __device__ void each(const F& f) const {
#pragma unroll
    for (int i = 0; i < items; ++i)
      if (has(i)) f(i);
  }
  // Elements from the first one to the i-th, in a matrix whose rows are so long.
  __device__ static std::int64_t offset(int i, std::int64_t ld) { return i * rows_apart * ld; }
};

// `group`: slabs that are awaited together, a warp having two such groups of them under way, or all that there are.
template <class Storage, int per_unit, int gates, int group>
class ChainProduct {
  static constexpr int lane_columns = 16 / sizeof(Storage), slab_columns = 4 * lane_columns;
  static constexpr int tile_units = tile_weights / per_unit;
  static constexpr int most_tiles = held_tiles(per_unit), most_slabs = chain_slabs(per_unit, gates);
  static constexpr int groups = most_slabs / group, under_way = groups > 1 ? 2 : 1;

 public:
  static constexpr int neighbour = per_unit > 1 ? 8 : 4;       // lanes to the one with the other unit of a pair

  __device__ ChainProduct(const Weights<Storage>& weights, const Plan& plan, const Range& rows,
                          const Exchange<Storage>& exchange)
      : exchange(exchange),
        tiles(static_cast<int>((plan.units_per_block + tile_units - 1) / tile_units)),
        slabs(max(0, ((weights.K + slab_columns - 1) / slab_columns - warp + chains - 1) / chains)),
        row_tiles((rows.end - rows.begin + tile_rows - 1) / tile_rows),
        from(exchange.at(rows.begin, warp * slab_columns) + lane * lane_columns) {
    const int first = warp * slab_columns + lane % 4 * lane_columns;
#pragma unroll
    for (int tile = 0; tile < most_tiles; ++tile)
#pragma unroll
      for (int i = 0; i < most_slabs; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int n = lane / 4, unit = weights.begin + tile * tile_units, k = first + i * chains * slab_columns;
          const Storage* const row = !has_tile(tile) ? nullptr
                                     : per_unit > 1  ? weights.row(unit + n / 2, n % 2 * 2 + half)
                                                     : weights.row(unit + n + 8 * half, 0);
          held[tile][i][half] =
              row && k < weights.K ? rounded<Storage>(*reinterpret_cast<const uint4*>(row + k)) : uint4{};
        }
  }

  // The lane's items, whose warps have all lanes' sums at once: up to 8 row tiles, that warps w and w + 4 take in turn.
  template <int items>
  __device__ Items<items> of_lane(const Range& units, const Range& rows) const {
    const int unit = per_unit > 1 ? warp % 4 * tile_units + lane / 8 : lane / 4 + warp % 4 / 2 * 8;
    const int row = warp / 4 * tile_rows + lane % 4 * 2 + (per_unit > 1 ? lane / 4 % 2 : warp % 2);
    return {units.begin + unit, units.end, rows.begin + row, rows.end};
  }
  __device__ bool has(int item) const { return warp / 4 + 2 * item < row_tiles && (per_unit == 1 || warp % 4 < tiles); }

  // Asks for the next step's results. For so many cycles they will not be there: to ask before keeps others waiting.
  __device__ void ask(unsigned patience) {
    if (patience > 0)
      for (const unsigned begin = cycles(); cycles() - begin < patience;) {
      }
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
        uint4(&now)[group] = x[g % under_way];
        await(r, g, now);
#pragma unroll
        for (int i = 0; i < group; ++i) {
          if (g * group + i >= slabs) break;
          const uint4 source = rounded<Storage>(now[i]);
#pragma unroll
          for (int tile = 0; tile < most_tiles; ++tile)
            if (has_tile(tile))
              chain[tile].add(Storage{}, held[tile][g * group + i][0], held[tile][g * group + i][1], source);
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
    const int r = warp / 4 + 2 * i;
    if constexpr (per_unit > 1) {
      const float4* const part = partials(r) + (warp % 4 * 32 + lane);
      float4 of[chains];
#pragma unroll
      for (int c = 0; c < chains; ++c) of[c] = part[c * most_tiles * 32];
      const float total[4] = {
          sum_of_chains([&](int c) { return of[c].x; }), sum_of_chains([&](int c) { return of[c].y; }),
          sum_of_chains([&](int c) { return of[c].z; }), sum_of_chains([&](int c) { return of[c].w; })};
      gates_of_unit(total, result);
    } else {
      const float* const part = reinterpret_cast<const float*>(partials(r)) + (warp % 4 * 32 + lane);
      result[0] = sum_of_chains([&](int c) { return part[c * most_tiles * 32 * 4]; });
    }
  }

  __device__ bool has_tile(int tile) const { return most_tiles == 1 || tile < tiles; }

 private:
  __device__ static unsigned cycles() {
    unsigned now;
    asm volatile("mov.u32 %0, %%clock;" : "=r"(now)::"memory");
    return now;
  }

  // A group's fragments of a row tile: each lane 16 bytes of row lane / 4.
  __device__ void fetch(int r, int g, uint4 (&x)[group]) const {
    if (r >= row_tiles) return;
    const Storage* const at = from + r * exchange.row_tile_stride();
#pragma unroll
    for (int i = 0; i < group; ++i) {
      const int own = g * group + i;
      if (own < slabs) x[i] = load_fresh_words(at + own * (chains * exchange.tile));
    }
  }
  __device__ void await(int r, int g, uint4 (&x)[group]) const {
    for (;;) {
      unsigned most = 0;
#pragma unroll
      for (int i = 0; i < group; ++i)
        if (g * group + i < slabs) most = max(most, max(max(x[i].x, x[i].y), max(x[i].z, x[i].w)));
      if (most != not_yet) break;
      fetch(r, g, x);
    }
    __syncwarp();
  }

  // Of a row tile the warps' chains: [chains, most_tiles, 32] of four sums, backward [chains, 4, 32].
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
        for (int j = 0; j < 4; ++j) reinterpret_cast<float*>(part)[j * 32 + lane] = chain[tile].sum(j);
    }
  }

  const Exchange<Storage> exchange;
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0), lane = static_cast<int>(threadIdx.x) % 32;
  const int tiles, slabs, row_tiles;  // slabs: this warp's
  uint4 held[most_tiles][most_slabs][2], x[under_way][group];
  const Storage* from;  // of the next step
};

}  // namespace lstm_fused::cuda
