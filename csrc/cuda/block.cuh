// A block's part of a step, how it meets those that have the same rows, and its product.
#pragma once

#include "tensor_product.cuh"

namespace lstm_fused::cuda {

extern __shared__ __align__(128) unsigned char shared_memory[];

__device__ inline Range units_of_block(const Plan& plan, int H) {
  const int each = static_cast<int>(plan.units_per_block), begin = static_cast<int>(blockIdx.y) * each;
  return {begin, begin + each < H ? begin + each : H};
}

// Of the rows [0, batch).
__device__ inline Range rows_of_block(const Plan& plan, int batch) {
  const int each = static_cast<int>(plan.rows_per_block), begin = static_cast<int>(blockIdx.x) * each;
  return {begin, begin + each < batch ? begin + each : batch};
}

__device__ inline int row_of_block(const Plan& plan, int b) {
  return b - static_cast<int>(blockIdx.x * plan.rows_per_block);
}

// A sequence's steps in numbers of 32 bits, which the host has found enough; `even`: of the same rows all.
struct Steps {
  const Sequence& sequence;
  const int steps = static_cast<int>(sequence.steps), batch = static_cast<int>(sequence.batch);
  const bool even = !sequence.batch_sizes;

  __device__ int time(int step) const { return sequence.reverse ? steps - 1 - step : step; }
  // In the direction of time; none before the first step and after the last.
  __device__ int active(int step) const {
    if (step < 0 || step >= steps) return 0;
    return even ? batch : static_cast<int>(sequence.batch_sizes[time(step)]);
  }
  __device__ int data_row(int step, int b) const {
    return (even ? time(step) * batch : static_cast<int>(sequence.offsets[time(step)])) + b;
  }
  __device__ bool ends(int step, int b) const {
    return even ? step + 1 == steps : b >= sequence.first_ending(time(step));
  }
  __device__ bool begins_anew(const bool* resets, int step, int b) const {
    return resets && sequence.begins_anew(resets, time(step), b);
  }
};
// Elements before a row of a matrix.
__device__ inline std::int64_t rows_before(int row, int ld) { return static_cast<std::int64_t>(row) * ld; }

// After a step: everybody whose results the next one reads has done this one. In plan `grid` those are the blocks of
// the same rows, which count themselves in, over all steps, in a number of the device's memory. One thread of a block
// does: what the others wrote before the first barrier is released with its count, and what it acquires holds for them
// after the second. Where data says itself whether it is there (not_yet, values.cuh), the count is but a hint when to
// look, and needs no order: each warp counts itself in, as soon as it has written.
class Meeting {
 public:
  // arrived: [row groups], zero. `counted`: warps of a block that write what others await.
  __device__ Meeting(const Plan& plan, unsigned* arrived, bool hint, int counted)
      : arrived(plan.kind == Kind::grid ? arrived + blockIdx.x : nullptr), hint(hint), counted(hint ? counted : 1) {}

  // This step's results are written.
  __device__ void arrive() {
    if (arrived && hint && threadIdx.x % 32 == 0 && threadIdx.x / 32 < counted)
      asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(arrived) : "memory");
  }

  __device__ void wait() {
    if (!arrived || !hint) __syncthreads();
    if (!arrived) return;
    if (threadIdx.x == 0) {
      awaited += gridDim.y * counted;
      if (!hint) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrived) : "memory");
      unsigned count = 0;
      do {  // the comparison is right also when the count wraps
        if (hint) asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(arrived) : "memory");
        else asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(arrived) : "memory");
      } while (static_cast<int>(count - awaited) < 0);
    }
    __syncthreads();
  }

 private:
  unsigned* const arrived;
  const bool hint;
  const unsigned counted;
  unsigned awaited = 0;
};

// Rows of a step's results that the next one multiplies with, where a block keeps them: one half is read while the
// other is written.
template <class Storage>
__device__ Storage* kept_row(const Plan& plan, int step, int row) {
  return reinterpret_cast<Storage*>(shared_memory + plan.source_at +
                                    ((step & 1) * plan.rows + row) * plan.source_stride);
}

// A word of the elements of two units, of which `neighbour` lanes further is the other, for the lane with the even one;
// of an element that is a word, itself. Called by all lanes of a warp.
template <int neighbour, class Storage>
__device__ unsigned word_of(Storage value) {
  if constexpr (sizeof(Storage) == 2)
    return value.bits | __shfl_xor_sync(~0u, static_cast<unsigned>(value.bits), neighbour) << 16;
  else if constexpr (sizeof(Storage) == 4) return bits_of(value);
  else return 0;  // awaited by barriers alone
}

// Writes what other blocks may await: the element, or where they look at words (`hint`), the word that it begins.
template <class Storage>
__device__ void publish(Storage* at, Storage value, unsigned word, bool hint, int unit) {
  if (!hint) *at = value;
  else if (sizeof(Storage) == 4 || unit % 2 == 0) store_word(at, word);
}

// f(item, row of the batch, unit) for those of this lane's that are among `rows`, of which a product has the first.
template <class Product, class F>
__device__ void each_item(const Product& product, int first_unit, const Range& rows, const F& f) {
#pragma unroll
  for (int i = 0; i < Product::items; ++i) {
    const Item item = product.item(i, first_unit);
    const int b = rows.begin + item.row;
    if (item.valid && b < rows.end) f(i, b, item.unit);
  }
}

template <class Storage, int per_unit, int gates, int rows>
__device__ auto make_product(const Weights<Storage>& weights, const Plan& plan, bool hint) {
  if constexpr (rows <= split_tensor)
    return TensorProduct<Storage, per_unit, gates, rows == split_tensor>(weights, plan, shared_memory, hint);
  else return Product<Storage, per_unit, rows>(weights, plan, shared_memory);
}

}  // namespace lstm_fused::cuda
