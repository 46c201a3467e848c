// Blocks and clusters that meet at mbarriers: a pipeline of a producer and consumers, threads that work between arrival
// and wait, and a ring of blocks each of which waits for its neighbours alone.
#include <cooperative_groups.h>

#include <cuda/barrier>

#include "check.h"
#include "mbarriers.h"

namespace cg = cooperative_groups;

// The first warp brings rows of x into `stages` buffers, three others sum them. A stage is full after 32 arrivals, and
// empty after one of each warp that reads it.
constexpr int stages = 2, width = 96;
__global__ void __launch_bounds__(128) pipeline(const float* x,  // [rows, width]
                                                float* sums,  // [width]
                                                int rows) {
  __shared__ float s[stages][width];
  __shared__ Mbarrier full[stages], empty[stages];
  const int warp = threadIdx.x / 32, l = threadIdx.x % 32;
  if (threadIdx.x == 0)
    for (int k = 0; k < stages; ++k) init(&full[k], 32), init(&empty[k], 3);
  __syncthreads();
  float sum = 0;
  for (int row = 0; row < rows; ++row) {
    const int k = row % stages, round = row / stages;
    if (warp == 0) {
      wait(&empty[k], round % 2 ^ 1);  // of a new mbarrier the phase before the first counts as complete
      for (int i = l; i < width; i += 32) s[k][i] = x[row * width + i];
      arrive(&full[k]);
    } else {
      wait(&full[k], round % 2);
      sum += s[k][(warp - 1) * 32 + l] + s[k][0];  // one value that all read
      __syncwarp();
      if (l == 0) arrive(&empty[k]);
    }
  }
  if (warp) sums[(warp - 1) * 32 + l] = sum;
}

// Threads arrive for themselves, or one for four, and see what others did before when the phase has completed.
__global__ void meet(const float* x, float* y) {
  __shared__ float s[64];
  __shared__ Mbarrier m, other;
  if (threadIdx.x == 0) {
    init(&m, 64);
    init(&other, 2);
    inval(&other);
    init(&other, 2);
  }
  __syncthreads();
  float v = x[threadIdx.x];
  for (int t = 0; t < 4; ++t) {
    s[threadIdx.x] = v;
    __syncwarp();
    Mbarrier phase = 0;
    if (t % 2 == 0) phase = arrive(&m);
    else if (threadIdx.x % 4 == 0) phase = arrive(&m, 4);
    phase = __shfl_sync(~0u, phase, threadIdx.x & 28);
    while (!passed(&m, phase)) {
    }
    v = s[63 - threadIdx.x] + 1;
    __syncthreads();
  }
  y[threadIdx.x] = v;
  if (threadIdx.x == 0) {
    Mbarrier phase;
    asm volatile("mbarrier.arrive.noComplete.shared::cta.b64 %0, [%1], 1;"
                 : "=l"(phase)
                 : "r"(shared_address(&other))
                 : "memory");
    if (passed(&other, phase)) __trap();
    arrive(&other);
    if (!passed(&other, phase)) __trap();
  }
}

// The same by the barrier of CUDA's C++ library.
__global__ void library(const float* x, float* y) {
  using Barrier = cuda::barrier<cuda::thread_scope_block>;
  __shared__ alignas(Barrier) unsigned char memory[sizeof(Barrier)];
  __shared__ float s[64];
  Barrier& barrier = *reinterpret_cast<Barrier*>(memory);
  if (threadIdx.x == 0) init(&barrier, 64);
  __syncthreads();
  float v = x[threadIdx.x];
  for (int t = 0; t < 4; ++t) {
    s[threadIdx.x] = v;
    auto phase = barrier.arrive();
    barrier.wait(std::move(phase));
    v = s[63 - threadIdx.x] + 1;
    barrier.arrive_and_wait();
  }
  y[threadIdx.x] = v;
}

// Numbers go round a ring: each step a block gives its own to the next. It waits for the one before it to have given,
// and for the one after it to have read what it gave in the last step.
__global__ void __cluster_dims__(4) ring(float* y, int steps) {
  __shared__ float given[32];
  __shared__ Mbarrier full, empty;
  const cg::cluster_group cluster = cg::this_cluster();
  const unsigned rank = cluster.block_rank(), next = (rank + 1) % 4, before = (rank + 3) % 4;
  if (threadIdx.x == 0) init(&full, 32), init(&empty, 32);
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("barrier.cluster.arrive.relaxed;\nbarrier.cluster.wait;" ::: "memory");
  float v = static_cast<float>(100 * rank + threadIdx.x);
  for (int t = 0; t < steps; ++t) {
    wait(&empty, t % 2 ^ 1);
    cluster.map_shared_rank(given, next)[threadIdx.x] = v;
    arrive_at(&full, next);
    wait(&full, t % 2);
    v = given[31 - threadIdx.x] + 1;
    __syncwarp();
    arrive_at(&empty, before);
  }
  y[blockIdx.x * 32 + threadIdx.x] = v;
  cluster.sync();
}

void check_pipeline() {
  const int rows = 9;
  const auto x = uniforms(rows * width);
  Array<float> dx(x), sums(width);
  pipeline<<<1, 128>>>(dx, sums, rows);
  const auto got = sums.host();
  Comparison compare{"pipeline", 1e-6};
  for (int i = 0; i < width; ++i) {
    double sum = 0;
    for (int row = 0; row < rows; ++row) sum += x[row * width + i] + x[row * width];
    compare(got[i], sum);
  }
}

void check_meet(void (*kernel)(const float*, float*)) {
  const auto x = uniforms(64);
  Array<float> dx(x), y(64);
  kernel<<<1, 64>>>(dx, y);
  const auto got = y.host();
  Comparison compare{"meeting", 1e-6};
  for (int i = 0; i < 64; ++i) compare(got[i], x[i] + 4.);
}

void check_ring() {
  const int steps = 5;
  Array<float> y(4 * 32);
  ring<<<4, 32>>>(y, steps);
  const auto got = y.host();
  Comparison compare{"ring", 0};
  for (int b = 0; b < 4; ++b)
    for (int i = 0; i < 32; ++i) compare(got[b * 32 + i], 100 * ((b + 3) % 4) + 31 - i + steps);
}

int main() {
  check_pipeline();
  check_meet(meet);
  check_meet(library);
  check_ring();
}
