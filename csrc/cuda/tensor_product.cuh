// The product inside a time step by tensor cores, with the interface of product.cuh: of bfloat16 and float16 numbers,
// and of float32 ones rounded to tf32, with sums in float32.
//
// An instruction multiplies 16 rows of the weights, a *tile*, with 8 rows of the source. A lane has four neighbouring
// 32-bit words of weight rows lane/4 and lane/4 + 8, and of source row lane/4: 64 bytes of each row, a *slab*, are a
// fragment of 16 bytes a lane and row, and two instructions take it. (In which order an instruction takes its columns
// does not matter, as long as both sides have the same.)
//
// Sums are made in 8 *chains*, of every 8th slab, which are added up in pairs at the end; so the order depends on
// nothing but k. Where the source comes from other blocks, each warp has a chain of all tiles, so that it reads its
// part of the source and no other, and the chains meet in shared memory; where it is the block's own, a warp has all
// chains of some tiles. Fragments of the weights stay in registers where they fit, else in shared memory, else nowhere.
#pragma once

#include "../cells/approximate.h"
#include "product.cuh"

namespace lstm_fused::cuda {

// Whether the device has the instructions. Where it has not, kernels that need them are empty, and no plan starts them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
inline constexpr bool has_tensor_cores = false;
#else
inline constexpr bool has_tensor_cores = true;
#endif

// sum += a * b for a tile: what the instruction for elements of this type does; float32 numbers are rounded before.
__device__ inline void multiply_add(BFloat16, float (&sum)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                    unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ inline void multiply_add(Float16, float (&sum)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                    unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ inline unsigned to_tf32(unsigned bits) {
  unsigned rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}
template <class Storage>
__device__ uint4 rounded(const uint4& words) {
  if constexpr (sizeof(Storage) < 4) return words;
  else return {to_tf32(words.x), to_tf32(words.y), to_tf32(words.z), to_tf32(words.w)};
}
__device__ inline void multiply_add(float, float (&sum)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                    unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// A chain of a tile, of which a slab's two instructions have a sum each: neither waits for the other.
struct Chain {
  float first[4] = {}, second[4] = {};

  template <class Storage>
  __device__ void add(Storage type, const uint4& low, const uint4& high, const uint4& x) {
    multiply_add(type, first, low.x, high.x, low.y, high.y, x.x, x.y);
    multiply_add(type, second, low.z, high.z, low.w, high.w, x.z, x.w);
  }
  __device__ float sum(int j) const { return first[j] + second[j]; }
};

// Of a chain's sums, chain(c): in pairs.
template <class F>
__device__ float sum_of_chains(const F& chain) {
  return ((chain(0) + chain(1)) + (chain(2) + chain(3))) + ((chain(4) + chain(5)) + (chain(6) + chain(7)));
}

// A lane has two gates of a unit for two rows: it and the one with the other gates exchange, so that each has all gates
// of one row.
__device__ inline void gates_of_unit(const float (&total)[4], float (&gates)[4]) {
  const bool upper = threadIdx.x & 4;
  const float first = __shfl_xor_sync(~0u, upper ? total[0] : total[1], 4);
  const float second = __shfl_xor_sync(~0u, upper ? total[2] : total[3], 4);
  gates[0] = upper ? first : total[0];
  gates[1] = upper ? second : total[2];
  gates[2] = upper ? total[1] : first;
  gates[3] = upper ? total[3] : second;
}

// `split`: each warp has one chain of all tiles, not all chains of some.
template <class Storage, int per_unit, int gates, bool split>
class TensorProduct {
  static constexpr int lane_columns = 16 / sizeof(Storage), slab_columns = 4 * lane_columns;
  static constexpr int tile_units = tile_weights / per_unit;
  static constexpr int most_tiles = held_tiles(per_unit), most_slabs = held_slabs(per_unit, gates, split);

 public:
  using Value = Approximate;
  static constexpr int rows = tile_rows;
  static constexpr int items = split ? 1 : 4;  // one of each tile, or the four of one

  // `hint`: rows that are awaited say themselves whether they are there (not_yet, values.cuh).
  __device__ TensorProduct(const Weights<Storage>& weights, const Plan& plan, unsigned char* shared, bool hint)
      : weights(weights),
        plan(plan),
        hint(hint),
        slabs(static_cast<int>((weights.K + slab_columns - 1) / slab_columns)),
        tiles(static_cast<int>((plan.units_per_block + tile_units - 1) / tile_units)),
        kept(reinterpret_cast<uint4*>(shared + plan.weights_at)),
        partials(reinterpret_cast<float4*>(shared + plan.partials_at)),
        lane_slabs(count_of_lane()) {}

  __device__ int pass_units() const { return (split ? 1 : warps) * most_tiles * tile_units; }
  // Warps that have items in a pass over all units.
  __device__ int updating_warps() const { return !split ? warps : per_unit == 1 ? 4 : min(tiles, most_tiles); }

  __device__ void keep_weights() {
    if (plan.held) {
#pragma unroll
      for (int tile = 0; tile < most_tiles; ++tile)
#pragma unroll
        for (int i = 0; i < most_slabs; ++i)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            held[tile][i][half] = whole_from_memory(weights.begin + tile_of(tile) * tile_units, slab_of(i), half);
    } else if (plan.resident) {
      for (int i = warp; i < tiles * slabs * 2; i += warps)
        kept[i * 32 + lane] = from_memory(weights.begin + i / 2 / slabs * tile_units, i / 2 % slabs, i % 2);
    }
    __syncthreads();
  }

  __device__ Item item(int i, int first) const {
    Item found;
    if constexpr (per_unit > 1) {
      const int tile = split ? warp : tile_of(i);
      found = {lane % 4 * 2 + lane / 4 % 2, first + tile * tile_units + lane / 8, !split || warp < most_tiles};
    } else {
      const int which = split ? warp : i, tile = split ? 0 : warp;
      found = {lane % 4 * 2 + which % 2, first + tile * tile_units + lane / 4 + which / 2 * 8, !split || warp < 4};
    }
    found.valid = found.valid && found.unit < weights.end;
    return found;
  }
  // The lane with the next unit of the same row is this far away, for one whose unit is even.
  static constexpr int neighbour = per_unit > 1 ? 8 : 4;

  // The source rows are others from here on; `row` is asked for the lane's own, see product.cuh.
  template <class Row>
  __device__ void aim(const Row& row) {
    const SourceRow<Storage> found = row(lane / 4);
    from = found.at + first_column();
    awaited = found.awaited;
    count = found.at ? lane_slabs : 0;
  }

  // As in product.cuh, with the rows that were aimed at.
  template <class Row, class Shift>
  __device__ void multiply(int first, const Row& /*row*/, const Shift& shift, float (&result)[items][per_unit]) {
    const int tile = (first - weights.begin) / tile_units;
    if constexpr (split) multiply_chain(tile, shift, result);
    else multiply_tiles(tile, shift, result);
  }

 private:
  // Of the block's tiles, the i-th of this warp in a pass; of the slabs, its i-th.
  __device__ int tile_of(int i) const { return split ? i : warp + i * warps; }
  __device__ int slab_of(int i) const { return split ? warp + i * chains : i; }

  // Half a fragment of a tile of the weights: rows lane/4 or lane/4 + 8. With gates, a lane and the one four away have
  // the gates of a unit, two each.
  __device__ const Storage* row_of_weights(int unit_of_tile, int half) const {
    const int n = lane / 4;
    return per_unit > 1 ? weights.row(unit_of_tile + n / 2, n % 2 * 2 + half)
                        : weights.row(unit_of_tile + n + 8 * half, 0);
  }
  __device__ uint4 whole_from_memory(int unit_of_tile, int slab, int half) const {
    const Storage* const row = row_of_weights(unit_of_tile, half);
    const int k = column_of_lane(slab);
    return row && k < weights.K ? rounded<Storage>(*reinterpret_cast<const uint4*>(row + k)) : uint4{};
  }
  __device__ uint4 from_memory(int unit_of_tile, int slab, int half) const {
    if (plan.aligned) return whole_from_memory(unit_of_tile, slab, half);
    const Storage* const row = row_of_weights(unit_of_tile, half);
    const int k = column_of_lane(slab);
    return rounded<Storage>(gather<false>(row ? row + k : nullptr, k, [](int) { return 0; }));
  }
  __device__ int count_of_lane() const {
    int found = 0;
    while (column_of_lane(slab_of(found)) < weights.K) ++found;
    return found;
  }
  __device__ int column_of_lane(int slab) const { return slab * slab_columns + lane % 4 * lane_columns; }

  __device__ int first_column() const { return column_of_lane(slab_of(0)); }

  // The elements of 16 bytes from column k on, which lies at `first`, each shifted, with zeros beyond column K and for
  // no row; past L1 what is not the block's.
  template <bool fresh, class Shift>
  __device__ uint4 gather(const Storage* first, int k, const Shift& shift) const {
    unsigned words[4] = {};
#pragma unroll
    for (int i = 0; i < lane_columns; ++i) {
      if (!first || k + i >= weights.K) break;
      const Storage* const at = first + i + shift(k + i);
      if constexpr (sizeof(Storage) == 4) words[i] = bits_of(fresh ? load_fresh_bits(at) : *at);
      else words[i / 2] |= static_cast<unsigned>((fresh ? load_fresh_bits(at) : *at).bits) << i % 2 * 16;
    }
    return {words[0], words[1], words[2], words[3]};
  }

  // The source's fragment of the warp's i-th slab.
  template <class Shift>
  __device__ uint4 source(int i, const Shift& shift) const {
    if (plan.aligned) return whole_source(i, shift);
    const int further = i * (split ? chains : 1) * slab_columns;
    return gather<split>(count ? from + further : nullptr, first_column() + further, shift);
  }
  template <class Shift>
  __device__ uint4 whole_source(int i, const Shift& shift) const {
    if (i >= count) return {};
    const int further = i * (split ? chains : 1) * slab_columns;
    const Storage* const at = from + further + shift(first_column() + further);
    return split ? load_fresh_words(at) : *reinterpret_cast<const uint4*>(at);
  }

  __device__ uint4 fragment(int tile, int slab, int half) const {
    return plan.resident ? kept[((tile * slabs + slab) * 2 + half) * 32 + lane]
                         : from_memory(weights.begin + tile * tile_units, slab, half);
  }

  // A chain of each tile from `first_tile` on, then all chains of this warp's tile, or its part of one.
  template <class Shift>
  __device__ void multiply_chain(int first_tile, const Shift& shift, float (&result)[items][per_unit]) {
    Chain chain[most_tiles];
    if (plan.held) {
      uint4 x[most_slabs];
      bool missing;
      do {
        missing = false;
#pragma unroll
        for (int i = 0; i < most_slabs; ++i) x[i] = whole_source(i, shift);
        if (hint && awaited)
#pragma unroll
          for (int i = 0; i < most_slabs; ++i) missing |= has_not_yet(x[i]);
      } while (missing);
      __syncwarp();
#pragma unroll
      for (int i = 0; i < most_slabs; ++i)
        if (slab_of(i) < slabs) {
          const uint4 source = rounded<Storage>(x[i]);
#pragma unroll
          for (int tile = 0; tile < most_tiles; ++tile)
            if (tile < tiles) chain[tile].add(Storage{}, held[tile][i][0], held[tile][i][1], source);
        }
    } else {
#pragma unroll 1
      for (int i = 0; slab_of(i) < slabs; ++i) {
        uint4 x = source(i, shift);
        while (hint && awaited && has_not_yet(x)) x = source(i, shift);
        __syncwarp();
        x = rounded<Storage>(x);
#pragma unroll
        for (int tile = 0; tile < most_tiles; ++tile)
          if (first_tile + tile < tiles)
            chain[tile].add(Storage{}, fragment(first_tile + tile, slab_of(i), 0),
                            fragment(first_tile + tile, slab_of(i), 1), x);
      }
    }
    float4* const part = partials + turn * (chains * most_tiles * 32);
    turn ^= 1;  // so that a warp that is late may still read the last ones
#pragma unroll
    for (int tile = 0; tile < most_tiles; ++tile)
      if (first_tile + tile < tiles)
        part[(warp * most_tiles + tile) * 32 + lane] = {chain[tile].sum(0), chain[tile].sum(1), chain[tile].sum(2),
                                                        chain[tile].sum(3)};
    __syncthreads();
    if constexpr (per_unit > 1) {
      if (warp >= most_tiles || first_tile + warp >= tiles) return;
      const float4* const of_tile = part + (warp * 32 + lane);
      float4 sums[chains];
#pragma unroll
      for (int c = 0; c < chains; ++c) sums[c] = of_tile[c * most_tiles * 32];
      const float total[4] = {
          sum_of_chains([&](int c) { return sums[c].x; }), sum_of_chains([&](int c) { return sums[c].y; }),
          sum_of_chains([&](int c) { return sums[c].z; }), sum_of_chains([&](int c) { return sums[c].w; })};
      give(total, result, 0);
    } else if (warp < 4) {
      const float* const of_item = reinterpret_cast<const float*>(part) + (lane * 4 + warp);
      result[0][0] = sum_of_chains([&](int c) { return of_item[c * most_tiles * 32 * 4]; });
    }
  }

  // All chains of this warp's tiles.
  template <class Shift>
  __device__ void multiply_tiles(int first_tile, const Shift& shift, float (&result)[items][per_unit]) {
    if (plan.held) {
#pragma unroll
      for (int i = 0; i < most_tiles; ++i) {
        if (first_tile + tile_of(i) >= tiles) break;
        Chain chain[chains];
#pragma unroll
        for (int slab = 0; slab < most_slabs; ++slab)
          if (slab < slabs)
            chain[slab % chains].add(Storage{}, held[i][slab][0], held[i][slab][1],
                                     rounded<Storage>(whole_source(slab, shift)));
        float total[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) total[j] = sum_of_chains([&](int c) { return chain[c].sum(j); });
        give(total, result, i);
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < most_tiles; ++i) {
        if (first_tile + tile_of(i) >= tiles) break;
        float total[4];
        multiply_tile(total, first_tile + tile_of(i), shift);
#pragma unroll
        for (int j = 0; j < most_tiles; ++j)
          if (i == j) give(total, result, j);
      }
    }
  }

  // One chain after the other, added up as sum_of_chains does: `sums` are of one, two and four.
  template <class Shift>
  __device__ void multiply_tile(float (&sum)[4], int tile, const Shift& shift) {
    float sums[3][4];
#pragma unroll 1
    for (int c = 0; c < chains; ++c) {
      Chain chain;
#pragma unroll 1
      for (int slab = c; slab < slabs; slab += chains)
        chain.add(Storage{}, fragment(tile, slab, 0), fragment(tile, slab, 1), rounded<Storage>(source(slab, shift)));
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[j] = chain.sum(j);
#pragma unroll
      for (int level = 0; level < 3; ++level) {
        const bool second = c >> level & 1;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (second) sum[j] = sums[level][j] + sum[j];
          else sums[level][j] = sum[j];
        }
        if (!second) break;
      }
    }
  }

  // The i-th results of a lane, or backward all of them.
  __device__ void give(const float (&total)[4], float (&result)[items][per_unit], int i) const {
    if constexpr (per_unit > 1) {
      gates_of_unit(total, result[i]);
    } else {
#pragma unroll
      for (int j = 0; j < items; ++j) result[j][0] = total[j];
    }
  }

  const Weights<Storage> weights;
  const Plan& plan;
  const bool hint;
  const int slabs, tiles;
  uint4* const kept;  // [tiles, slabs, 2, 32]: fragments
  float4* const partials;  // [2, chains, most_tiles, 32]
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  uint4 held[most_tiles][most_slabs][2];
  int turn = 0;
  const Storage* from = nullptr;  // the lane's first number of its source row
  bool awaited = false;  // see SourceRow
  const int lane_slabs;  // of the warp's slabs those in which this lane has columns
  int count = 0;  // the same where it has a source row, else none
};

}  // namespace lstm_fused::cuda
