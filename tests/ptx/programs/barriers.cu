// A stencil iterated by a persistent grid: with a barrier made of atomics and fences, and with a cooperative launch.
#include <cooperative_groups.h>

#include "check.h"

namespace cg = cooperative_groups;

// A counter that all blocks raise, and a generation that the last one raises.
__device__ void grid_barrier(unsigned* counter, unsigned* generation) {
  __syncthreads();
  if (threadIdx.x == 0) {
    const unsigned g = *static_cast<volatile unsigned*>(generation);
    __threadfence();
    if (atomicAdd(counter, 1u) == gridDim.x - 1) {
      atomicExch(counter, 0u);
      __threadfence();
      atomicAdd(generation, 1u);
    } else {
      while (*static_cast<volatile unsigned*>(generation) == g) {
      }
    }
    __threadfence();
  }
  __syncthreads();
}

__device__ float stencil(const float* x, int i, int n) { return .5f * (x[(i + 1) % n] + x[(i + n - 7) % n]); }

__global__ void by_hand(float* x, float* y, unsigned* barrier, int n, int steps) {
  for (int t = 0; t < steps; ++t) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] = stencil(x, i, n);
    grid_barrier(barrier, barrier + 1);
    float* swapped = x;
    x = y;
    y = swapped;
  }
}

__global__ void cooperative(float* x, float* y, int n, int steps) {
  const auto grid = cg::this_grid();
  for (int t = 0; t < steps; ++t) {
    for (int i = static_cast<int>(grid.thread_rank()); i < n; i += static_cast<int>(grid.size()))
      y[i] = stencil(x, i, n);
    grid.sync();
    float* swapped = x;
    x = y;
    y = swapped;
  }
}

int main() {
  int n = 300, steps = 9;
  const auto start = uniforms(n);
  auto x = start, y = start;
  for (int t = 0; t < steps; ++t) {
    for (int i = 0; i < n; ++i) y[i] = .5f * (x[(i + 1) % n] + x[(i + n - 7) % n]);
    x = y;
  }
  Comparison compare{"grid barriers", 0};
  for (const bool cooperatively : {false, true}) {
    Array<float> a(start), b(n);
    Array<unsigned> barrier(2);
    barrier.zero();
    if (cooperatively) {
      void* arguments[] = {&a.data, &b.data, &n, &steps};
      const auto kernel = reinterpret_cast<const void*>(cooperative);
      CHECK(cudaLaunchCooperativeKernel(kernel, dim3(4), dim3(64), arguments, 0, nullptr));
    } else {
      by_hand<<<4, 64>>>(a, b, barrier, n, steps);
    }
    const auto got = steps % 2 ? b.host() : a.host();
    for (int i = 0; i < n; ++i) compare(got[i], x[i]);
  }
}
