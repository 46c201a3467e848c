// What goes wrong between the blocks of a cluster, and sound twins.
#include <cooperative_groups.h>

#include "faults.h"

namespace cg = cooperative_groups;

__device__ unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

__device__ unsigned mapped(const void* p, unsigned rank) {
  unsigned address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(rank));
  return address;
}

__device__ unsigned other_rank() { return cg::this_cluster().block_rank() ^ 1; }

// Behind the end of another block's shared memory.
template <bool planted>
__global__ void __cluster_dims__(2) bounds(float* y) {
  extern __shared__ float s[];
  s[threadIdx.x] = 1;
  cg::this_cluster().sync();
  y[blockIdx.x * 64 + threadIdx.x] = cg::this_cluster().map_shared_rank(s, 1)[threadIdx.x + (planted ? 1 : 0)];
  cg::this_cluster().sync();
}

template <bool planted>
__global__ void __cluster_dims__(2) rank(float* y) {
  __shared__ float s;
  if (threadIdx.x == 0) s = 1;
  cg::this_cluster().sync();
  if (threadIdx.x == 0) y[blockIdx.x] = *cg::this_cluster().map_shared_rank(&s, planted ? 2 : 1);
  cg::this_cluster().sync();
}

// The address of another block's memory, used as one's own.
template <bool planted>
__global__ void __cluster_dims__(2) own_window(float* y) {
  __shared__ float s;
  if (threadIdx.x == 0) s = 1;
  cg::this_cluster().sync();
  float v;
  if (planted) asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(mapped(&s, other_rank())) : "memory");
  else asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(mapped(&s, other_rank())) : "memory");
  if (threadIdx.x == 0) y[blockIdx.x] = v;
  cg::this_cluster().sync();
}

// A pointer to its own shared memory, given to another block without mapping it.
template <bool planted>
__global__ void __cluster_dims__(2) pointer(float* y) {
  __shared__ float s;
  __shared__ const float* given;
  const cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  if (threadIdx.x == 0) {
    s = 1;
    *cluster.map_shared_rank(&given, other_rank()) = planted ? &s : cluster.map_shared_rank(&s, cluster.block_rank());
  }
  cluster.sync();
  if (threadIdx.x == 0) y[blockIdx.x] = *given;
  cluster.sync();
}

// Blocks exchange values each step; without a second buffer the next ones need a second barrier.
template <bool planted>
__global__ void __cluster_dims__(2) exchange(float* y) {
  __shared__ float s[32];
  float v = threadIdx.x;
  const cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  for (int t = 0; t < 3; ++t) {
    cluster.map_shared_rank(s, other_rank())[threadIdx.x] = v;
    cluster.sync();
    v = s[31 - threadIdx.x] + 1;
    if (!planted) cluster.sync();
  }
  y[blockIdx.x * 32 + threadIdx.x] = v;
  cluster.sync();
}

// A relaxed arrival orders nothing.
template <bool planted>
__global__ void __cluster_dims__(2) relaxed(float* y) {
  __shared__ float s;
  cg::this_cluster().sync();
  if (threadIdx.x == 0) *cg::this_cluster().map_shared_rank(&s, other_rank()) = 1;
  if (planted) asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  else asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  if (threadIdx.x == 0) y[blockIdx.x] = s;
}

// Between arrival and wait: too late to be seen by others after their wait.
template <bool planted>
__global__ void __cluster_dims__(2) late(float* y) {
  __shared__ float s;
  const cg::cluster_group cluster = cg::this_cluster();
  if (threadIdx.x == 0 && !planted) s = 1;
  cluster.barrier_arrive();
  if (threadIdx.x == 0 && planted) s = 1;
  cluster.barrier_wait();
  if (threadIdx.x == 0) y[blockIdx.x] = *cluster.map_shared_rank(&s, other_rank());
  cluster.sync();
}

// Between arrival and wait: too early to see what others did before they arrived.
template <bool planted>
__global__ void __cluster_dims__(2) early(float* y) {
  __shared__ float s[64];
  const cg::cluster_group cluster = cg::this_cluster();
  cluster.sync();
  cluster.map_shared_rank(s, other_rank())[threadIdx.x] = 1;
  cluster.barrier_arrive();
  float v = 0;
  if (planted) v = s[63 - threadIdx.x];
  cluster.barrier_wait();
  if (!planted) v = s[63 - threadIdx.x];
  y[blockIdx.x * 64 + threadIdx.x] = v;
}

// The barrier of a block does not order the others.
template <bool planted>
__global__ void __cluster_dims__(2) only_the_block(float* y) {
  __shared__ float s[64];
  const cg::cluster_group cluster = cg::this_cluster();
  s[threadIdx.x] = 1;
  cluster.sync();
  y[blockIdx.x * 64 + threadIdx.x] = cluster.map_shared_rank(s, other_rank())[threadIdx.x];
  if (planted) __syncthreads();
  else cluster.sync();
  s[threadIdx.x] = 2;
  cluster.sync();
}

// Blocks of a cluster run at the same time, but do not start together.
template <bool planted>
__global__ void __cluster_dims__(2) start(float* y) {
  __shared__ float s;
  const cg::cluster_group cluster = cg::this_cluster();
  if (!planted) cluster.sync();
  if (cluster.block_rank() == 0 && threadIdx.x == 0) *cluster.map_shared_rank(&s, 1) = 1;
  cluster.sync();
  if (cluster.block_rank() == 1 && threadIdx.x == 0) *y = s;
}

// The first block leaves while the second may still read its memory.
template <bool planted>
__global__ void __cluster_dims__(2) end(float* y) {
  __shared__ float s;
  const cg::cluster_group cluster = cg::this_cluster();
  if (threadIdx.x == 0) s = 1;
  cluster.sync();
  if (cluster.block_rank() == 1 && threadIdx.x == 0) *y = *cluster.map_shared_rank(&s, 0);
  if (!planted) cluster.sync();
}

// The same with a second block that takes its time.
template <bool planted>
__global__ void __cluster_dims__(2) ended(float* y) {
  __shared__ float s;
  const cg::cluster_group cluster = cg::this_cluster();
  if (threadIdx.x == 0) s = 1;
  cluster.sync();
  if (cluster.block_rank() == 1 && threadIdx.x == 0) {
    for (int i = 0; i < 500; ++i) __nanosleep(100);
    *y = *cluster.map_shared_rank(&s, 0);
  }
  if (!planted) cluster.sync();
}

// Of `s` the other block has written all but one value.
template <bool planted>
__global__ void __cluster_dims__(2) unwritten(float* y) {
  __shared__ float s[32];
  const cg::cluster_group cluster = cg::this_cluster();
  if (threadIdx.x < (planted ? 31 : 32)) s[threadIdx.x] = 1;
  cluster.sync();
  y[blockIdx.x * 32 + threadIdx.x] = cluster.map_shared_rank(s, other_rank())[threadIdx.x];
  cluster.sync();
}

// Data by distributed shared memory, then a flag: without a fence the data may come after it.
template <bool planted>
__global__ void __cluster_dims__(2) stale() {
  __shared__ float data;
  __shared__ int flag;
  const cg::cluster_group cluster = cg::this_cluster();
  if (threadIdx.x == 0) data = 0, flag = 0;
  cluster.sync();
  if (cluster.block_rank() == 0 && threadIdx.x == 0) {
    *cluster.map_shared_rank(&data, 1) = 1;
    if (!planted) asm volatile("fence.acq_rel.cluster;" ::: "memory");
    atomicExch(cluster.map_shared_rank(&flag, 1), 1);
    for (int i = 0; i < 500; ++i) __nanosleep(100);  // the barrier below would be a fence
  } else if (threadIdx.x == 0) {
    while (*static_cast<volatile int*>(&flag) == 0) {
    }
    asm volatile("fence.acq_rel.cluster;" ::: "memory");
    if (data != 1) __trap();
  }
  cluster.sync();
}

// Halves of a warp arrive at different places of the source.
template <bool planted>
__global__ void __cluster_dims__(2) divergent(float* y) {
  if (threadIdx.x < (planted ? 16 : 32)) {
    y[blockIdx.x * 32 + threadIdx.x] = 1;
    asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
  } else {
    y[blockIdx.x * 32 + threadIdx.x] = 2;
    asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
  }
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

// Half of the second block waits for the cluster, the other half for the block.
template <bool planted>
__global__ void __cluster_dims__(2) deadlock(float* y) {
  const cg::cluster_group cluster = cg::this_cluster();
  if (planted && cluster.block_rank() == 1 && threadIdx.x >= 32) __syncthreads();
  cluster.sync();
  y[blockIdx.x * 64 + threadIdx.x] = 1;
}

template <bool planted>
__global__ void __cluster_dims__(2) twice(float* y) {
  asm volatile("barrier.cluster.arrive;" ::: "memory");
  if (planted) asm volatile("barrier.cluster.arrive;" ::: "memory");
  asm volatile("barrier.cluster.wait;" ::: "memory");
  y[blockIdx.x * 32 + threadIdx.x] = 1;
}

template <bool planted>
__global__ void __cluster_dims__(2) no_arrival(float* y) {
  if (!planted || threadIdx.x < 5) asm volatile("barrier.cluster.arrive;" ::: "memory");
  asm volatile("barrier.cluster.wait;" ::: "memory");
  y[blockIdx.x * 32 + threadIdx.x] = 1;
}

#define CASE(kernel, ...) \
  {#kernel, [](Data& d) { kernel<false> __VA_ARGS__; }, [](Data& d) { kernel<true> __VA_ARGS__; }}

int main(int argc, char** argv) {
  const Case cases[] = {
      CASE(bounds, <<<2, 64, 256>>>(d.y)), CASE(rank, <<<2, 32>>>(d.y)),     CASE(own_window, <<<2, 32>>>(d.y)),
      CASE(pointer, <<<2, 32>>>(d.y)),     CASE(exchange, <<<2, 32>>>(d.y)), CASE(relaxed, <<<2, 32>>>(d.y)),
      CASE(late, <<<2, 32>>>(d.y)),        CASE(early, <<<2, 64>>>(d.y)),    CASE(only_the_block, <<<2, 64>>>(d.y)),
      CASE(start, <<<2, 32>>>(d.y)),       CASE(end, <<<2, 32>>>(d.y)),      CASE(ended, <<<2, 32>>>(d.y)),
      CASE(unwritten, <<<2, 32>>>(d.y)),   CASE(stale, <<<2, 32>>>()),       CASE(divergent, <<<2, 32>>>(d.y)),
      CASE(deadlock, <<<2, 64>>>(d.y)),    CASE(twice, <<<2, 32>>>(d.y)),    CASE(no_arrival, <<<2, 32>>>(d.y)),
  };
  return run_case(cases, argc, argv);
}
