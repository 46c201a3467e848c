// The product inside a time step: some rows of the source times some rows of the weights, along k. A block stages the
// source rows in shared memory, as numbers to compute with; a warp multiplies all of them with four rows of the weights
// at a time, its lanes sharing k, and adds up across lanes at the end. Each sum is taken in an order that depends on
// nothing but k, so results do not depend on the plan.
#pragma once

#include "plan.h"
#include "values.cuh"

namespace lstm_fused::cuda {

// Lane i * 32 / n of the result has the sum of sums[i] over all lanes. At each stage half of the sums go to the other
// half of the lanes, until each has one.
template <int n, class Compute>
__device__ Compute sum_over_lanes(Compute (&sums)[n]) {
  const int lane = threadIdx.x % 32;
  int count = n;
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    if (count > 1) {
      count /= 2;
      const bool upper = lane & distance;
#pragma unroll
      for (int i = 0; i < n / 2; ++i) {
        if (i >= count) break;
        const Compute other = __shfl_xor_sync(~0u, upper ? sums[i] : sums[i + count], distance);
        sums[i] = (upper ? sums[i + count] : sums[i]) + other;
      }
    } else {
      sums[0] += __shfl_xor_sync(~0u, sums[0], distance);
    }
  }
  return sums[0];
}

// A block's product with `rows` source rows of K columns. `weight(i)` is the i-th of the block's rows of the weights.
template <class Storage, int rows>
class Product {
  using Compute = compute_t<Storage>;

 public:
  static constexpr int sums = weight_rows * rows;
  static constexpr int lanes_per_sum = 32 / sums;

  // Which sum a lane is given: of source row sum / weight_rows with row sum % weight_rows of the warp's weights.
  __device__ static int my_sum() { return threadIdx.x % 32 / lanes_per_sum; }
  __device__ static bool first_of_sum() { return threadIdx.x % lanes_per_sum == 0; }

  __device__ Product(std::int64_t K, std::int64_t columns, void* shared)
      : K(K), columns(columns), staged(static_cast<Compute*>(shared)) {}

  __device__ Storage* behind_staged() const { return reinterpret_cast<Storage*>(staged + rows * columns); }

  // The source rows are others from here on; everybody has read the last ones.
  __device__ void next_rows() { first_staged = -1; }

  // Called by all warps of a block; those with nothing to do have no weights. source(r, k) reads the source.
  template <class Source>
  __device__ Compute multiply(const Storage* const (&weights)[weight_rows], const Source& source) {
    Compute sum[sums] = {};
    for (std::int64_t first = 0; first < K; first += columns) {
      const std::int64_t width = K - first < columns ? K - first : columns;
      if (first != first_staged) stage(first, width, source);
      for (std::int64_t k = threadIdx.x % 32; k < width; k += 32) {
        Compute w[weight_rows];
#pragma unroll
        for (int i = 0; i < weight_rows; ++i) w[i] = weights[i] ? load(weights[i] + first + k) : Compute(0);
#pragma unroll
        for (int r = 0; r < rows; ++r) {
          const Compute x = staged[r * columns + k];
#pragma unroll
          for (int i = 0; i < weight_rows; ++i) sum[r * weight_rows + i] += w[i] * x;
        }
      }
    }
    return sum_over_lanes(sum);
  }

 private:
  template <class Source>
  __device__ void stage(std::int64_t first, std::int64_t width, const Source& source) {
    __syncthreads();
    for (int r = 0; r < rows; ++r)
      for (std::int64_t k = threadIdx.x; k < width; k += threads) staged[r * columns + k] = source(r, first + k);
    __syncthreads();
    first_staged = first;
  }

  const std::int64_t K, columns;
  Compute* const staged;  // [rows, columns]
  std::int64_t first_staged = -1;
};

// The block's rows of the weights, copied behind the staged source if they are to stay there: row(i) is where the i-th
// of them lies, `from(i)` where it comes from, null if there is none.
template <class Storage, class From>
__device__ void make_resident(Storage* to, std::int64_t count, std::int64_t K, const From& from) {
  for (std::int64_t i = 0; i < count; ++i) {
    const Storage* const row = from(i);
    if (!row) continue;
    for (std::int64_t k = threadIdx.x; k < K; k += threads) to[i * K + k] = row[k];
  }
  __syncthreads();
}

}  // namespace lstm_fused::cuda
