// The product inside a time step: some rows of the source times the block's rows of the weights, along k. Here without
// tensor cores: a block stages the source rows in shared memory, as numbers to compute with; a warp multiplies all of
// them with four rows of the weights at a time, its lanes sharing k, and adds up across lanes at the end. Each sum is
// taken in an order that depends on nothing but k, so results do not depend on the plan. tensor_product.cuh has the
// same interface.
#pragma once

#include "plan.h"
#include "values.cuh"

namespace lstm_fused::cuda {

struct Range {
  int begin, end;
};

// A block's part of the weights [gates, H, K]: of its units, each with `gates` rows.
template <class Storage>
struct Weights {
  const Storage* matrix;
  int K, H, gates;
  int begin, end;  // units

  __device__ Weights(const Storage* matrix, std::int64_t H, std::int64_t K, int gates, const Range& units)
      : matrix(matrix),
        K(static_cast<int>(K)),
        H(static_cast<int>(H)),
        gates(gates),
        begin(units.begin),
        end(units.end) {}

  // The row of a gate of a unit; null where there is none.
  __device__ const Storage* row(int unit, int gate) const {
    return unit < end && gate < gates ? matrix + (static_cast<std::int64_t>(gate) * H + unit) * K : nullptr;
  }
};

// A row that a product multiplies; null: zeros. `awaited`: another block may not have written it yet.
template <class Storage>
struct SourceRow {
  const Storage* at;
  bool awaited;
};

// A result of a pass over some of the block's units, for the lane that is given it.
struct Item {
  int row;            // of the source
  int unit;  // of H
  bool valid;
};

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

// With `rows_at_once` source rows. A unit has `per_unit` sums: 4, those of gates that do not exist being zero, or 1.
template <class Storage, int per_unit, int rows_at_once>
class Product {
  using Compute = compute_t<Storage>;
  static constexpr int sums = weight_rows * rows_at_once, lanes_per_sum = 32 / sums;
  static constexpr int warp_units = weight_rows / per_unit;

 public:
  using Value = Compute;  // what cells compute with
  static constexpr int rows = rows_at_once, items = 1, neighbour = 0;

  __device__ Product(const Weights<Storage>& weights, const Plan& plan, unsigned char* shared)
      : weights(weights),
        plan(plan),
        staged(reinterpret_cast<Compute*>(shared)),
        kept(reinterpret_cast<Storage*>(shared + plan.weights_at)) {}

  __device__ int updating_warps() const { return warps; }

  // Units of a pass, over all warps.
  __device__ int pass_units() const { return warps * warp_units; }

  // Copies the block's weights to shared memory, if they are to stay there.
  __device__ void keep_weights() {
    if (!plan.resident) return;
    for (int i = 0; i < plan.units_per_block * per_unit; ++i) {
      const Storage* const row = weights.row(weights.begin + i / per_unit, i % per_unit);
      if (!row) continue;
      for (int k = threadIdx.x; k < weights.K; k += threads) kept[i * weights.K + k] = row[k];
    }
    __syncthreads();
  }

  __device__ Item item(int /*i*/, int first) const {
    const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
    if (per_unit > 1) return {lane, first + warp, lane < rows && first + warp < weights.end};
    const int sum = lane / lanes_per_sum, unit = first + warp * warp_units + sum % weight_rows;
    return {sum / weight_rows, unit, lane % lanes_per_sum == 0 && unit < weights.end};
  }

  // The source rows are others from here on.
  template <class Row>
  __device__ void aim(const Row& /*row*/) {
    first_staged = -1;
  }

  // A pass, from unit `first` on: the sums of this lane's items. Called by all warps of a block. row(r) is a source row
  // (SourceRow), and its k-th number lies shift(k) elements further.
  template <class Row, class Shift>
  __device__ void multiply(int first, const Row& row, const Shift& shift, Compute (&result)[1][per_unit]) {
    const int unit = first + threadIdx.x / 32 * warp_units;
    const Storage* mine[weight_rows];
    for (int i = 0; i < weight_rows; ++i) {
      mine[i] = weights.row(unit + i / per_unit, i % per_unit);
      if (plan.resident && mine[i]) mine[i] = kept + ((unit - weights.begin) * per_unit + i) * weights.K;
    }
    Compute sum[sums] = {};
    for (int begin = 0; begin < weights.K; begin += plan.staged_columns) {
      const int left = weights.K - begin, width = left < plan.staged_columns ? left : plan.staged_columns;
      if (begin != first_staged) stage(begin, width, row, shift);
      for (int k = threadIdx.x % 32; k < width; k += 32) {
        Compute w[weight_rows];
#pragma unroll
        for (int i = 0; i < weight_rows; ++i) w[i] = mine[i] ? load(mine[i] + begin + k) : Compute(0);
#pragma unroll
        for (int r = 0; r < rows; ++r) {
          const Compute x = staged[r * plan.staged_columns + k];
#pragma unroll
          for (int i = 0; i < weight_rows; ++i) sum[r * weight_rows + i] += w[i] * x;
        }
      }
    }
    const Compute total = sum_over_lanes(sum);
    result[0][0] = total;
    if constexpr (per_unit > 1)  // a lane for each row gathers the gates
      for (int g = 0; g < per_unit; ++g)
        result[0][g] = __shfl_sync(~0u, total, (threadIdx.x % rows * weight_rows + g) * lanes_per_sum);
  }

 private:
  // Past L1 what may be another block's.
  __device__ Compute number_at(const Storage* at) const { return plan.kind == Kind::block ? load(at) : load_fresh(at); }

  template <class Row, class Shift>
  __device__ void stage(int begin, int width, const Row& row, const Shift& shift) {
    __syncthreads();  // everybody has read what was there
    for (int r = 0; r < rows; ++r) {
      const Storage* const from = row(r).at;
      for (int k = threadIdx.x; k < width; k += threads)
        staged[r * plan.staged_columns + k] = from ? number_at(from + begin + k + shift(begin + k)) : Compute(0);
    }
    __syncthreads();
    first_staged = begin;
  }

  const Weights<Storage> weights;
  const Plan& plan;
  Compute* const staged;  // [rows, staged_columns]
  Storage* const kept;    // [units * per_unit, K]
  int first_staged = -1;
};

}  // namespace lstm_fused::cuda
