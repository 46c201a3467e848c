// The product inside a time step by tensor cores, with the interface of product.cuh: of bfloat16 and float16 numbers,
// and of float32 ones rounded to tf32, with sums in float32.
//
// An instruction multiplies a tile of 16 source rows with 8 rows of the weights. A lane has four neighbouring 32-bit
// words of source rows lane/4 and lane/4 + 8, and of weight row lane/4: 64 bytes of each row, a *slab*, are a fragment
// of 16 bytes a lane, and two instructions take it. (In which order an instruction takes its columns does not matter,
// as long as both sides have the same.)
//
// Sums are made in 8 *chains*, of every 8th slab, which are added up in pairs at the end; so the order depends on
// nothing but k. Where the block has few tiles, each warp has a chain of all of them, and the chains meet in shared
// memory; else a warp has all chains of a tile.
#pragma once

#include <cuda_pipeline_primitives.h>

#include "product.cuh"

namespace lstm_fused::cuda {

// sum += a * b for a tile: what the instruction for elements of this type does.
__device__ inline void multiply_add(BFloat16, float (&sum)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                    unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#endif
}
__device__ inline void multiply_add(Float16, float (&sum)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                    unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#endif
}
__device__ inline unsigned to_tf32(unsigned bits) {
  unsigned rounded = bits;
#if __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
#endif
  return rounded;
}
__device__ inline void multiply_add(float, float (&sum)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                    unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(to_tf32(a0)), "r"(to_tf32(a1)), "r"(to_tf32(a2)), "r"(to_tf32(a3)), "r"(to_tf32(b0)), "r"(to_tf32(b1)));
#endif
}

// The 16 bytes from `row + column(k)` on, with zeros beyond column K and for no row.
template <class Storage, class Column>
__device__ uint4 gather(const Storage* row, std::int64_t k, std::int64_t K, const Column& column) {
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(Storage) == 4) {
      words[i] = row && k + i < K ? __float_as_uint(load_fresh(row + column(k + i))) : 0;
    } else {
      const auto bits = [&](std::int64_t at) -> unsigned {
        return row && at < K ? __ldcg(reinterpret_cast<const unsigned short*>(row + column(at))) : 0;
      };
      words[i] = bits(k + 2 * i) | bits(k + 2 * i + 1) << 16;
    }
  }
  return {words[0], words[1], words[2], words[3]};
}

template <class Storage, int per_unit>
class TensorProduct {
  static constexpr int lane_columns = 16 / sizeof(Storage), slab_columns = 4 * lane_columns;
  static constexpr int tile_units = tile_columns / per_unit;

 public:
  static constexpr int rows = tile_rows;
  static constexpr int items = per_unit > 1 ? 1 : 4;  // a tile has 16 * 8 sums, 4 for a lane

  // `aligned`: all rows, of the source too, begin at multiples of 16 bytes, and so does every gate in them.
  __device__ TensorProduct(const Weights<Storage>& weights, const Plan& plan, unsigned char* shared, bool aligned)
      : weights(weights),
        plan(plan),
        aligned(aligned),
        slabs((weights.K + slab_columns - 1) / slab_columns),
        tiles((plan.units_per_block + tile_units - 1) / tile_units),
        staged(shared),
        kept(reinterpret_cast<uint4*>(shared + plan.weights_at)),
        partials(reinterpret_cast<float4*>(shared + plan.partials_at)) {}

  __device__ std::int64_t pass_units() const { return (plan.split ? tiles : warps) * tile_units; }

  __device__ void keep_weights() {
    if (!plan.resident) return;
    for (std::int64_t i = warp; i < tiles * slabs; i += warps)
      kept[i * 32 + lane] = from_memory(weights.begin + i / slabs * tile_units, i % slabs);
    __syncthreads();
  }

  // Where each warp has a chain, a tile is one warp's in the end, or shared by several, each with some of the items.
  __device__ Item item(int i, std::int64_t first) const {
    const int share = warps_of_tile(), tile = warp / share;
    const std::int64_t unit_of_tile = first + tile * tile_units;
    const bool mine = !plan.split || (tile < tiles && i % share == warp % share);
    Item found;
    if constexpr (per_unit > 1) found = {lane / 4 + lane % 2 * 8, unit_of_tile + lane % 4 / 2, mine};
    else found = {lane / 4 + i / 2 * 8, unit_of_tile + lane % 4 * 2 + i % 2, mine};
    found.valid = found.valid && found.unit < weights.end;
    return found;
  }

  __device__ void next_rows() { first_staged = -1; }

  template <class Row, class Column>
  __device__ void multiply(std::int64_t first, const Row& row, const Column& column, float (&result)[items][per_unit]) {
    float chain[chains][4] = {};  // of one tile; where chains are split among warps, of some tiles
    const std::int64_t staged_slabs = plan.staged_columns / slab_columns;
    for (std::int64_t begin = 0; begin < slabs; begin += staged_slabs) {
      const std::int64_t end = begin + staged_slabs < slabs ? begin + staged_slabs : slabs;
      if (begin != first_staged) stage(begin, end, row, column);
      if (plan.split) {
        for (std::int64_t slab = begin + warp; slab < end; slab += chains)
#pragma unroll
          for (int tile = 0; tile < warps / 2; ++tile)
            if (tile < tiles) multiply_slab(chain[tile], first + tile * tile_units, slab, begin);
      } else if (first + warp * tile_units < weights.end) {
        for (std::int64_t slab = begin; slab < end; slab += chains)
#pragma unroll
          for (int c = 0; c < chains; ++c)
            if (slab + c < end) multiply_slab(chain[c], first + warp * tile_units, slab + c, begin);
      }
    }
    if (plan.split) exchange(chain);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      chain[0][i] = ((chain[0][i] + chain[1][i]) + (chain[2][i] + chain[3][i])) +
                    ((chain[4][i] + chain[5][i]) + (chain[6][i] + chain[7][i]));
    give(chain[0], result);
  }

 private:
  __device__ int warps_of_tile() const {
    if (!plan.split || per_unit > 1) return 1;
    return tiles <= 2 ? 4 : 2;
  }

  // The fragment of a tile of the weights, from memory.
  __device__ uint4 from_memory(std::int64_t unit_of_tile, std::int64_t slab) const {
    const int n = lane / 4;
    const Storage* const row = weights.row(unit_of_tile + n / per_unit, n % per_unit);
    const std::int64_t k = slab * slab_columns + lane % 4 * lane_columns;
    if (!aligned) return gather(row, k, weights.K, [](std::int64_t at) { return at; });
    return row && k < weights.K ? *reinterpret_cast<const uint4*>(row + k) : uint4{};
  }

  __device__ void multiply_slab(float (&sum)[4], std::int64_t unit_of_tile, std::int64_t slab,
                                std::int64_t first_slab) const {
    const unsigned char* const at = staged + lane / 4 * plan.staged_stride + (slab - first_slab) * slab_bytes;
    const uint4 low = reinterpret_cast<const uint4*>(at)[lane % 4];
    const uint4 high = reinterpret_cast<const uint4*>(at + 8 * plan.staged_stride)[lane % 4];
    const std::int64_t tile = (unit_of_tile - weights.begin) / tile_units;
    const uint4 w = plan.resident ? kept[(tile * slabs + slab) * 32 + lane] : from_memory(unit_of_tile, slab);
    multiply_add(Storage{}, sum, low.x, high.x, low.y, high.y, w.x, w.y);
    multiply_add(Storage{}, sum, low.z, high.z, low.w, high.w, w.z, w.w);
  }

  // From a chain of each tile to all chains of this warp's tile.
  __device__ void exchange(float (&chain)[chains][4]) {
#pragma unroll
    for (int tile = 0; tile < warps / 2; ++tile)
      if (tile < tiles)
        partials[(warp * tiles + tile) * 32 + lane] = {chain[tile][0], chain[tile][1], chain[tile][2], chain[tile][3]};
    __syncthreads();
    const int tile = warp / warps_of_tile();
    if (tile >= tiles) return;
#pragma unroll
    for (int c = 0; c < chains; ++c) {
      const float4 part = partials[(c * tiles + tile) * 32 + lane];
      chain[c][0] = part.x, chain[c][1] = part.y, chain[c][2] = part.z, chain[c][3] = part.w;
    }
  }

  // A lane has columns 2 (lane % 4) and the next of rows lane/4 and lane/4 + 8. Two lanes that have the halves of a
  // unit's gates exchange rows, so that each has all gates of one.
  __device__ void give(const float (&total)[4], float (&result)[items][per_unit]) const {
    if constexpr (per_unit > 1) {
      const bool odd = lane % 2;
      const float first = __shfl_xor_sync(~0u, odd ? total[0] : total[2], 1);
      const float second = __shfl_xor_sync(~0u, odd ? total[1] : total[3], 1);
      result[0][0] = odd ? first : total[0];
      result[0][1] = odd ? second : total[1];
      result[0][2] = odd ? total[2] : first;
      result[0][3] = odd ? total[3] : second;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) result[i][0] = total[i];
    }
  }

  // Brings the slabs [begin, end) of all source rows to shared memory.
  template <class Row, class Column>
  __device__ void stage(std::int64_t begin, std::int64_t end, const Row& row, const Column& column) {
    __syncthreads();  // everybody has read what was there
    for (int r = warp; r < rows; r += warps) {
      const Storage* const from = row(r);
      auto* const to = reinterpret_cast<uint4*>(staged + r * plan.staged_stride);
      for (std::int64_t i = lane; i < 4 * (end - begin); i += 32) {
        const std::int64_t k = begin * slab_columns + i * lane_columns;
        if (!aligned) to[i] = gather(from, k, weights.K, column);
        else if (from && k < weights.K) __pipeline_memcpy_async(to + i, from + column(k), sizeof(uint4));  // past L1
        else to[i] = {};
      }
    }
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
    first_staged = begin;
  }

  const Weights<Storage> weights;
  const Plan& plan;
  const bool aligned;
  const std::int64_t slabs, tiles;
  unsigned char* const staged;  // [rows] of staged_stride bytes
  uint4* const kept;            // [tiles, slabs, 32]: fragments
  float4* const partials;       // [chains, tiles, 32]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  std::int64_t first_staged = -1;
};

}  // namespace lstm_fused::cuda
