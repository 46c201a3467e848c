// Faults of messages by relaxed accesses alone, and their sound twins.
#include "faults.h"

// What a word begins with, as the memory of the tests does.
constexpr int nothing = 0;

__device__ int load(const int* p) {
  int value;
  asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
__device__ void store(int* p, int value) {
  asm volatile("st.relaxed.gpu.global.s32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}

// A counter of which other blocks take no notice, for its writer or its reader sees to its own block alone.
template <bool of_writer, bool of_reader>
__global__ void counter(int* count) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) {
    if (of_writer) asm volatile("red.relaxed.cta.global.add.s32 [%0], 1;" ::"l"(count) : "memory");
    else asm volatile("red.relaxed.gpu.global.add.s32 [%0], 1;" ::"l"(count) : "memory");
  } else {
    int seen = 0;
    while (!seen)
      if (of_reader) asm volatile("ld.relaxed.cta.global.s32 %0, [%1];" : "=r"(seen) : "l"(count) : "memory");
      else asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(count) : "memory");
  }
}

// The same of a word.
template <bool planted>
__global__ void word(int* at) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 1)
    while (load(at) == nothing) {
    }
  else if (planted) asm volatile("st.relaxed.cta.global.s32 [%0], 1;" ::"l"(at) : "memory");
  else store(at, 1);
}

// Words and how many there are: no order has the one before the other.
template <bool planted>
__global__ void counted(int* words, int* count) {
  if (blockIdx.x == 0) {
    store(words + threadIdx.x, 1);
    atomicAdd(count, 1);
  } else {
    while (load(count) < 32) {
    }
    while (!planted && load(words + threadIdx.x) == nothing) {
    }
    if (load(words + threadIdx.x) == nothing) __trap();
  }
}

// A word that says that its neighbours are there.
template <bool planted>
__global__ void neighbours(int* words) {
  if (blockIdx.x == 0) {
    store(words + threadIdx.x, 1);
  } else if (threadIdx.x == 0) {
    for (int i = 0; i < 32; ++i) {
      while ((i == 0 || !planted) && load(words + i) == nothing) {
      }
      if (load(words + i) == nothing) __trap();
    }
  }
}

// A word that is there for a moment before the one that is meant.
template <bool planted>
__global__ void early(int* words) {
  if (blockIdx.x == 0) {
    if (planted) store(words + threadIdx.x, 1);
    store(words + threadIdx.x, 2);
  } else {
    int seen = nothing;
    while (seen == nothing) seen = load(words + threadIdx.x);
    if (seen != 2) __trap();
  }
}

int main(int argc, char** argv) {
  static Array<int> words{std::vector<int>(32)};
  const Case cases[] = {
      {"counter", [](Data& d) { counter<false, false><<<2, 32>>>(d.flag); },
       [](Data& d) { counter<true, false><<<2, 32>>>(d.flag); }},
      {"counter_read", [](Data& d) { counter<false, false><<<2, 32>>>(d.flag); },
       [](Data& d) { counter<false, true><<<2, 32>>>(d.flag); }},
      {"word", [](Data& d) { word<false><<<2, 32>>>(d.flag); }, [](Data& d) { word<true><<<2, 32>>>(d.flag); }},
      {"counted", [](Data& d) { counted<false><<<2, 32>>>(words, d.flag); },
       [](Data& d) { counted<true><<<2, 32>>>(words, d.flag); }},
      {"neighbours", [](Data&) { neighbours<false><<<2, 32>>>(words); },
       [](Data&) { neighbours<true><<<2, 32>>>(words); }},
      {"early", [](Data&) { early<false><<<2, 32>>>(words); }, [](Data&) { early<true><<<2, 32>>>(words); }},
  };
  return run_case(cases, argc, argv);
}
