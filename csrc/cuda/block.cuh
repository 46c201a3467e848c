// A block's part of a step, how it meets those that have the same rows, and its product.
#pragma once

#include "tensor_product.cuh"

namespace lstm_fused::cuda {

extern __shared__ __align__(128) unsigned char shared_memory[];

struct Range {
  std::int64_t begin, end;
};

__device__ inline Range units_of_block(const Plan& plan, std::int64_t H) {
  const std::int64_t begin = blockIdx.y * plan.units_per_block, end = begin + plan.units_per_block;
  return {begin, end < H ? end : H};
}

// Of the rows [0, batch).
__device__ inline Range rows_of_block(const Plan& plan, std::int64_t batch) {
  const std::int64_t begin = blockIdx.x * plan.rows_per_block, end = begin + plan.rows_per_block;
  return {begin, end < batch ? end : batch};
}

// After a step: everybody whose results the next one reads has done this one. In plan `grid` those are the blocks of
// the same rows, which count themselves in, over all steps, in a number of the device's memory. One thread of a block
// does: what the others wrote before the first barrier is released with its count, and what it acquires holds for them
// after the second.
class Meeting {
 public:
  // arrived: [row groups], zero.
  __device__ Meeting(const Plan& plan, unsigned* arrived)
      : arrived(plan.kind == Kind::grid ? arrived + blockIdx.x : nullptr) {}

  __device__ void wait() {
    __syncthreads();
    if (!arrived) return;
    if (threadIdx.x == 0) {
      awaited += gridDim.y;
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrived) : "memory");
      unsigned count = 0;
      do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(arrived) : "memory");
      while (static_cast<int>(count - awaited) < 0);  // right also when the count wraps
    }
    __syncthreads();
  }

 private:
  unsigned* const arrived;
  unsigned awaited = 0;
};

// Whether all rows and gates that the kernel reads in pieces of 16 bytes begin at multiples of that.
template <class Storage>
__device__ bool all_aligned(std::int64_t H, std::int64_t ld, const Storage* a, const Storage* b,
                            const Storage* c = nullptr, const Storage* d = nullptr) {
  const auto address = [](const Storage* p) { return reinterpret_cast<std::uintptr_t>(p); };
  return ((H | ld) * sizeof(Storage) | address(a) | address(b) | address(c) | address(d)) % 16 == 0;
}

template <class Storage, int per_unit, int rows>
__device__ auto make_product(const Weights<Storage>& weights, const Plan& plan, bool aligned) {
  if constexpr (rows == tile_rows) return TensorProduct<Storage, per_unit>(weights, plan, shared_memory, aligned);
  else return Product<Storage, per_unit, rows>(weights, plan, shared_memory);
}

}  // namespace lstm_fused::cuda
