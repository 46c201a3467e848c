// Addresses that are wrong, memory that nobody wrote, barriers that diverge, and kernels without end.
#include "faults.h"

template <bool planted>
__global__ void global_bounds(const float* x, float* y) {
  y[threadIdx.x + (planted ? 1 : 0)] = x[threadIdx.x];
}

template <bool planted>
__global__ void prefetch_bounds(const float* x, float* y) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(x + threadIdx.x + (planted ? 1 : 0)));
  y[threadIdx.x] = x[threadIdx.x];
}

template <bool planted>
__global__ void shared_bounds(const float* x, float* y) {
  extern __shared__ float s[];
  s[threadIdx.x + (planted ? 1 : 0)] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

template <bool planted>
__global__ void alignment(const float* x, float4* y) {
  y[threadIdx.x] = *reinterpret_cast<const float4*>(x + 4 * threadIdx.x + (planted ? 1 : 0));
}

// Only some bytes of `scratch` are written before all are read.
template <bool planted>
__global__ void unwritten_global(float* scratch, float* y) {
  if (threadIdx.x < (planted ? 63 : 64)) scratch[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = scratch[threadIdx.x];
}

template <bool planted>
__global__ void unwritten_shared(float* y) {
  __shared__ float s[64];
  if (threadIdx.x < (planted ? 63 : 64)) s[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];
}

// An exchange may be the first write, an addition may not.
template <bool planted>
__global__ void unwritten_atomic(float* y) {
  __shared__ int s;
  if (threadIdx.x == 0) planted ? atomicAdd(&s, 1) : atomicExch(&s, 1);
  __syncthreads();
  y[threadIdx.x] = s;
}

// The two halves of the block wait at different barriers in the source.
template <bool planted>
__global__ void divergent_block(float* y) {
  if (threadIdx.x < (planted ? 32 : 64)) {
    y[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] += 1;
  } else {
    y[threadIdx.x] = 2;
    __syncthreads();
    y[threadIdx.x] += 3;
  }
}

template <bool planted>
__global__ void divergent_warp(float* y) {
  if (threadIdx.x % 32 < (planted ? 16 : 32)) {
    y[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] += 1;
  } else {
    y[threadIdx.x] = 2;
    __syncthreads();
    y[threadIdx.x] += 3;
  }
}

// Lanes of a warp leave, the others wait for the block. A whole warp may leave.
template <bool planted>
__global__ void early_exit(float* y) {
  if (threadIdx.x >= (planted ? 40 : 32)) return;
  y[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] += 1;
}

// A barrier for 64 threads that only 32 reach.
template <bool planted>
__global__ void deadlock(float* y) {
  if (!planted || threadIdx.x < 32) asm volatile("bar.sync 1, 64;" ::: "memory");
  y[threadIdx.x] = 1;
}

template <bool planted>
__global__ void endless(int* flag) {
  if (!planted) atomicExch(flag, 1);
  while (*static_cast<volatile int*>(flag) == 0) {
  }
}

// Half of the lanes that a shuffle names have left the branch.
template <bool planted>
__global__ void shuffle(float* y, int* flag) {
  float v = threadIdx.x;
  if (threadIdx.x < 16) v = __shfl_xor_sync(planted ? 0xffffffffu : 0xffffu, v, 1);
  else
    while (planted && *static_cast<volatile int*>(flag) == 0) {
    }
  y[threadIdx.x] = v;
}

// A thread must name itself.
template <bool planted>
__global__ void mask(float* y) {
  if (threadIdx.x < 16) return;
  y[threadIdx.x] = __shfl_sync(planted ? 0xffffu : 0xffff0000u, y[threadIdx.x], 20);
}

template <bool planted>
__global__ void assertion(float* y) {
  if (planted && threadIdx.x == 7) __trap();
  y[threadIdx.x] = 1;
}

// A message between blocks whose data stay behind without a fence. The reader is right in both.
template <bool planted>
__global__ void stale(float* data, int* flag, float* y) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) {
    *data = 1;
    if (!planted) __threadfence();
    atomicExch(flag, 1);
  } else {
    while (*static_cast<volatile int*>(flag) == 0) {
    }
    __threadfence();
    *y = *data;
    if (*data != 1) __trap();
  }
}

// One thread's fence covers the stores of others only after a block barrier.
template <bool planted>
__global__ void stale_of_block(float* data, int* flag) {
  if (blockIdx.x == 0) {
    data[threadIdx.x] = 1;
    if (!planted) __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicExch(flag, 1);
    }
  } else {
    if (threadIdx.x == 0)
      while (*static_cast<volatile int*>(flag) == 0) {
      }
    __threadfence();
    __syncthreads();
    if (data[threadIdx.x] != 1) __trap();
  }
}

int main(int argc, char** argv) {
  Array<float> fresh(64);
  static float* scratch;
  scratch = fresh;
  const Case cases[] = {
      {"global_bounds", [](Data& d) { global_bounds<false><<<1, 256>>>(d.x, d.y); },
       [](Data& d) { global_bounds<true><<<1, 256>>>(d.x, d.y); }},
      {"prefetch_bounds", [](Data& d) { prefetch_bounds<false><<<1, 256>>>(d.x, d.y); },
       [](Data& d) { prefetch_bounds<true><<<1, 256>>>(d.x, d.y); }},
      {"shared_bounds", [](Data& d) { shared_bounds<false><<<1, 64, 256>>>(d.x, d.y); },
       [](Data& d) { shared_bounds<true><<<1, 64, 256>>>(d.x, d.y); }},
      {"alignment", [](Data& d) { alignment<false><<<1, 32>>>(d.x, reinterpret_cast<float4*>(d.y.data)); },
       [](Data& d) { alignment<true><<<1, 32>>>(d.x, reinterpret_cast<float4*>(d.y.data)); }},
      {"unwritten_global", [](Data& d) { unwritten_global<false><<<1, 64>>>(scratch, d.y); },
       [](Data& d) { unwritten_global<true><<<1, 64>>>(scratch, d.y); }},
      {"unwritten_shared", [](Data& d) { unwritten_shared<false><<<1, 64>>>(d.y); },
       [](Data& d) { unwritten_shared<true><<<1, 64>>>(d.y); }},
      {"unwritten_atomic", [](Data& d) { unwritten_atomic<false><<<1, 64>>>(d.y); },
       [](Data& d) { unwritten_atomic<true><<<1, 64>>>(d.y); }},
      {"divergent_block", [](Data& d) { divergent_block<false><<<1, 64>>>(d.y); },
       [](Data& d) { divergent_block<true><<<1, 64>>>(d.y); }},
      {"divergent_warp", [](Data& d) { divergent_warp<false><<<1, 64>>>(d.y); },
       [](Data& d) { divergent_warp<true><<<1, 64>>>(d.y); }},
      {"early_exit", [](Data& d) { early_exit<false><<<1, 64>>>(d.y); },
       [](Data& d) { early_exit<true><<<1, 64>>>(d.y); }},
      {"deadlock", [](Data& d) { deadlock<false><<<1, 64>>>(d.y); }, [](Data& d) { deadlock<true><<<1, 64>>>(d.y); }},
      {"assertion", [](Data& d) { assertion<false><<<1, 64>>>(d.y); },
       [](Data& d) { assertion<true><<<1, 64>>>(d.y); }},
      {"endless", [](Data& d) { endless<false><<<1, 32>>>(d.flag); },
       [](Data& d) { endless<true><<<1, 32>>>(d.flag); }},
      {"shuffle", [](Data& d) { shuffle<false><<<1, 32>>>(d.y, d.flag); },
       [](Data& d) { shuffle<true><<<1, 32>>>(d.y, d.flag); }},
      {"mask", [](Data& d) { mask<false><<<1, 32>>>(d.y); }, [](Data& d) { mask<true><<<1, 32>>>(d.y); }},
      {"stale", [](Data& d) { stale<false><<<2, 32>>>(d.y, d.flag, d.y + 1); },
       [](Data& d) { stale<true><<<2, 32>>>(d.y, d.flag, d.y + 1); }},
      {"stale_of_block", [](Data& d) { stale_of_block<false><<<2, 64>>>(d.y, d.flag); },
       [](Data& d) { stale_of_block<true><<<2, 64>>>(d.y, d.flag); }},
  };
  return run_case(cases, argc, argv);
}
