// What later steps read of what earlier kernels wrote, fetched into the second-level cache some steps before. A load
// from memory takes as long as half a step; and a multiprocessor's loads come back in the order in which they were
// asked for, so that those of the results which a step waits for would wait for it, too.
#pragma once

#include "block.cuh"

namespace lstm_fused::cuda {

// A thread's share: a part of a row, of as many as there are threads for; the last threads first, whose warps have
// least to do.
class Coming {
 public:
  static constexpr int steps = 3;  // ahead
  const int row, part;             // the thread's: of the batch, of the row

  __device__ Coming(const Range& rows, int parts)
      : row(rows.begin + thread() / parts), part(thread() % parts), end_row(rows.end) {}

  // In the first step the thread's part lies there, and in each further one so many elements on.
  template <class T>
  __device__ void begin(const T* first, std::int64_t stride) {
    if (row >= end_row) return;
    bytes = static_cast<std::int64_t>(sizeof(T)) * stride;
    at = reinterpret_cast<const char*>(first) + steps * bytes;
  }
  // Once a step; `exists`: the sequence goes on for so long.
  __device__ void ask(bool exists) {
    if (!at) return;
    if (exists) asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
    at += bytes;
  }

 private:
  __device__ static int thread() { return threads - 1 - static_cast<int>(threadIdx.x); }

  const int end_row;
  const char* at = nullptr;
  std::int64_t bytes = 0;
};

}  // namespace lstm_fused::cuda
