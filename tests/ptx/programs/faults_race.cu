// Data races, and their sound twins.
#include "faults.h"

__device__ unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

// Other warps' values are read without a barrier.
template <bool planted>
__global__ void block(const float* x, float* y) {
  __shared__ float s[128];
  s[threadIdx.x] = x[threadIdx.x];
  if (!planted) __syncthreads();
  y[threadIdx.x] = s[127 - threadIdx.x];
}

// A buffer is written again while slower threads may still read it.
template <bool planted>
__global__ void reuse(const float* x, float* y) {
  __shared__ float s[64];
  float sum = 0;
  for (int i = 0; i < 3; ++i) {
    s[threadIdx.x] = x[64 * i + threadIdx.x];
    __syncthreads();
    sum += s[63 - threadIdx.x];
    if (!planted) __syncthreads();
  }
  y[threadIdx.x] = sum;
}

// Lanes of one warp: no block barrier is needed, but __syncwarp is.
template <bool planted>
__global__ void warp(const float* x, float* y) {
  __shared__ float s[32];
  s[threadIdx.x] = x[threadIdx.x];
  if (!planted) __syncwarp();
  y[threadIdx.x] = s[31 - threadIdx.x];
}

// Sums of all threads in one place: with and without atomics.
template <bool planted>
__global__ void sum(const float* x, float* y) {
  if (planted) *y += x[threadIdx.x];
  else atomicAdd(y, x[threadIdx.x]);
}

// Neighbouring halves of one word, by different threads: sound. The same half by two threads: not.
template <bool planted>
__global__ void halves(float* y) {
  reinterpret_cast<unsigned short*>(y)[planted ? threadIdx.x / 2 : threadIdx.x] = threadIdx.x;
}

// A message from block 0 to block 1: data, fence, flag; flag, fence, data.
template <bool release, bool acquire>
__global__ void message(float* data, int* flag, float* y) {
  if (blockIdx.x == 0) {
    if (threadIdx.x == 0) {
      *data = 1;
      if (release) __threadfence();
      atomicExch(flag, 1);
    }
  } else if (threadIdx.x == 0) {
    while (*static_cast<volatile int*>(flag) == 0) {
    }
    if (acquire) __threadfence();
    *y = *data;
  }
}

// The same with the orders of PTX instead of fences; the flags are read by one warp, and passed on by __syncwarp.
template <bool planted>
__global__ void release_acquire(float* data, int* flags, float* y) {
  if (blockIdx.x < 3) {
    if (threadIdx.x != 0) return;
    data[blockIdx.x] = 1;
    if (planted) asm volatile("st.relaxed.gpu.global.s32 [%0], 1;" ::"l"(flags + blockIdx.x) : "memory");
    else asm volatile("st.release.gpu.global.s32 [%0], 1;" ::"l"(flags + blockIdx.x) : "memory");
  } else {
    for (int seen = 0; threadIdx.x < 3 && !seen;)
      asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(flags + threadIdx.x) : "memory");
    __syncwarp();
    y[threadIdx.x] = data[threadIdx.x % 3];
  }
}

// The data of all threads of a block go with one thread's flag, after a block barrier.
template <bool planted>
__global__ void message_of_block(float* data, int* flag, float* y) {
  if (blockIdx.x == 0) {
    data[threadIdx.x] = 1;
    if (!planted) __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicExch(flag, 1);
    }
  } else {
    if (threadIdx.x == 0) {
      while (*static_cast<volatile int*>(flag) == 0) {
      }
      __threadfence();
    }
    __syncthreads();
    y[threadIdx.x] = data[threadIdx.x];
  }
}

// Non-coherent loads, which the compiler also makes of const __restrict__, are for memory that the kernel does not
// write.
template <bool planted>
__global__ void constant(float* y) {
  y[threadIdx.x] = 1;
  __syncthreads();
  y[64 + threadIdx.x] = planted ? __ldg(y + 63 - threadIdx.x) : y[63 - threadIdx.x];
}

// Blocks of a launch are in no order: two that write one place race.
template <bool planted>
__global__ void blocks(float* y) {
  if (threadIdx.x == 0) y[planted ? 0 : blockIdx.x] = 1;
}

// A flag within a block, in shared memory, with a fence for the block.
template <bool planted>
__global__ void flag_in_block(const float* x, float* y) {
  __shared__ float data;
  __shared__ int flag;
  if (threadIdx.x == 0) flag = 0;
  __syncthreads();
  if (threadIdx.x == 0) {
    data = x[0];
    if (!planted) __threadfence_block();
    *static_cast<volatile int*>(&flag) = 1;
  } else if (threadIdx.x == 32) {
    while (*static_cast<volatile int*>(&flag) == 0) {
    }
    __threadfence_block();
    *y = data;
  }
}

// What cp.async copies is read before the wait.
template <bool planted>
__global__ void copy(const float* x, float* y) {
  __shared__ __align__(16) float s[128];
  asm volatile(
      "cp.async.ca.shared.global [%0], [%1], 16;\ncp.async.commit_group;" ::"r"(shared_address(s + 4 * threadIdx.x)),
      "l"(x + 4 * threadIdx.x)
      : "memory");
  if (!planted) asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncwarp();
  for (int i = 0; i < 4; ++i) y[32 * i + threadIdx.x] = s[32 * i + threadIdx.x];
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// The wait is for a thread's own copies: those of others need a barrier after it.
template <bool planted>
__global__ void copy_barrier(const float* x, float* y) {
  __shared__ __align__(16) float s[256];
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(shared_address(s + 4 * threadIdx.x)),
               "l"(x + 4 * threadIdx.x)
               : "memory");
  if (planted) __syncthreads();
  asm volatile("cp.async.wait_all;" ::: "memory");
  if (!planted) __syncthreads();
  for (int i = 0; i < 4; ++i) y[64 * i + threadIdx.x] = s[64 * i + threadIdx.x];
}

int main(int argc, char** argv) {
  const Case cases[] = {
      {"block", [](Data& d) { block<false><<<1, 128>>>(d.x, d.y); },
       [](Data& d) { block<true><<<1, 128>>>(d.x, d.y); }},
      {"reuse", [](Data& d) { reuse<false><<<1, 64>>>(d.x, d.y); }, [](Data& d) { reuse<true><<<1, 64>>>(d.x, d.y); }},
      {"warp", [](Data& d) { warp<false><<<1, 32>>>(d.x, d.y); }, [](Data& d) { warp<true><<<1, 32>>>(d.x, d.y); }},
      {"sum", [](Data& d) { sum<false><<<1, 64>>>(d.x, d.y); }, [](Data& d) { sum<true><<<1, 64>>>(d.x, d.y); }},
      {"halves", [](Data& d) { halves<false><<<1, 64>>>(d.y); }, [](Data& d) { halves<true><<<1, 64>>>(d.y); }},
      {"release", [](Data& d) { message<true, true><<<2, 32>>>(d.y, d.flag, d.y + 1); },
       [](Data& d) { message<false, true><<<2, 32>>>(d.y, d.flag, d.y + 1); }},
      {"acquire", [](Data& d) { message<true, true><<<2, 32>>>(d.y, d.flag, d.y + 1); },
       [](Data& d) { message<true, false><<<2, 32>>>(d.y, d.flag, d.y + 1); }},
      {"release_acquire", [](Data& d) { release_acquire<false><<<4, 32>>>(d.y, d.flag, d.y + 32); },
       [](Data& d) { release_acquire<true><<<4, 32>>>(d.y, d.flag, d.y + 32); }},
      {"message_of_block", [](Data& d) { message_of_block<false><<<2, 64>>>(d.y, d.flag, d.y + 64); },
       [](Data& d) { message_of_block<true><<<2, 64>>>(d.y, d.flag, d.y + 64); }},
      {"constant", [](Data& d) { constant<false><<<1, 64>>>(d.y); }, [](Data& d) { constant<true><<<1, 64>>>(d.y); }},
      {"blocks", [](Data& d) { blocks<false><<<4, 32>>>(d.y); }, [](Data& d) { blocks<true><<<4, 32>>>(d.y); }},
      {"flag_in_block", [](Data& d) { flag_in_block<false><<<1, 64>>>(d.x, d.y); },
       [](Data& d) { flag_in_block<true><<<1, 64>>>(d.x, d.y); }},
      {"copy", [](Data& d) { copy<false><<<1, 32>>>(d.x, d.y); }, [](Data& d) { copy<true><<<1, 32>>>(d.x, d.y); }},
      {"copy_barrier", [](Data& d) { copy_barrier<false><<<1, 64>>>(d.x, d.y); },
       [](Data& d) { copy_barrier<true><<<1, 64>>>(d.x, d.y); }},
  };
  return run_case(cases, argc, argv);
}
