// What goes wrong at mbarriers, and sound twins.
#include <cooperative_groups.h>

#include "faults.h"
#include "mbarriers.h"

namespace cg = cooperative_groups;

template <bool planted>
__global__ void uninitialised(float* y) {
  __shared__ Mbarrier m;
  if (!planted && threadIdx.x == 0) init(&m, 32);
  __syncwarp();
  arrive(&m);
  wait(&m, 0);
  y[threadIdx.x] = 1;
}

// Other threads use it before they can know that it is initialised.
template <bool planted>
__global__ void unordered(float* y) {
  __shared__ Mbarrier m;
  if (threadIdx.x == 31) init(&m, 32);
  if (!planted) __syncwarp();
  arrive(&m);
  y[threadIdx.x] = 1;
}

template <bool planted>
__global__ void no_arrivals(float* y) {
  __shared__ Mbarrier m;
  if (threadIdx.x == 0) init(&m, planted ? 0 : 1);
  y[threadIdx.x] = 1;
}

template <bool planted>
__global__ void too_many(float* y) {
  __shared__ Mbarrier m;
  if (threadIdx.x == 0) {
    init(&m, 5);
    arrive(&m, 3);
    arrive(&m, planted ? 3 : 2);
    *y = 1;
  }
}

template <bool planted>
__global__ void again(float* y) {
  __shared__ Mbarrier m;
  if (threadIdx.x == 0) {
    init(&m, 1);
    if (!planted) inval(&m);
    init(&m, 2);
    *y = 1;
  }
}

// A token of two phases ago.
template <bool planted>
__global__ void old_phase(float* y) {
  __shared__ Mbarrier m;
  if (threadIdx.x == 0) {
    init(&m, 1);
    const Mbarrier phase = arrive(&m);
    if (planted) arrive(&m);
    if (passed(&m, phase)) *y = 1;
  }
}

// One arrival is missing.
template <bool planted>
__global__ void missing(float* y) {
  __shared__ Mbarrier m;
  if (threadIdx.x == 0) init(&m, 64);
  __syncthreads();
  if (!planted || threadIdx.x != 40) arrive(&m);
  wait(&m, 0);
  y[threadIdx.x] = 1;
}

// In each of two rounds the first warp writes and the second reads, if it waits.
template <bool planted>
__global__ void reads_early(float* y) {
  __shared__ float s[32];
  __shared__ Mbarrier full, empty;
  if (threadIdx.x == 0) init(&full, 32), init(&empty, 32);
  __syncthreads();
  for (int t = 0; t < 2; ++t) {
    if (threadIdx.x < 32) {
      wait(&empty, t ^ 1);
      s[threadIdx.x] = static_cast<float>(t);
      arrive(&full);
    } else {
      if (t == 0 || !planted) wait(&full, t);
      y[threadIdx.x] = s[63 - threadIdx.x];
      if (t == 0) arrive(&empty);
    }
  }
}

// The second warp need not be done with what the first overwrites.
template <bool planted>
__global__ void overwrites(float* y) {
  __shared__ float s[32];
  __shared__ Mbarrier full, empty;
  if (threadIdx.x == 0) init(&full, 32), init(&empty, 32);
  __syncthreads();
  if (threadIdx.x < 32) {
    s[threadIdx.x] = 1;
    arrive(&full);
    if (!planted) wait(&empty, 0);
    s[threadIdx.x] = 2;
  } else {
    wait(&full, 0);
    y[threadIdx.x] = s[63 - threadIdx.x];
    arrive(&empty);
  }
}

// A relaxed arrival orders nothing.
template <bool planted>
__global__ void relaxed(float* y) {
  __shared__ float s;
  __shared__ Mbarrier m;
  if (threadIdx.x == 0) init(&m, 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    s = y[1];
    if (planted)
      asm volatile("{ .reg .b64 t; mbarrier.arrive.relaxed.cta.shared::cta.b64 t, [%0]; }" ::"r"(shared_address(&m))
                   : "memory");
    else arrive(&m);
  } else if (threadIdx.x == 32) {
    wait(&m, 0);
    *y = s;
  }
}

// An arrival at the mbarrier of a block that need not be there any more.
template <bool planted>
__global__ void __cluster_dims__(2) after_the_end(float* y) {
  __shared__ Mbarrier m;
  const cg::cluster_group cluster = cg::this_cluster();
  if (threadIdx.x == 0) init(&m, 2);
  cluster.sync();
  if (cluster.block_rank() == 1 && threadIdx.x == 0) arrive_at(&m, 0);
  if (!planted) cluster.sync();
  y[blockIdx.x * 32 + threadIdx.x] = 1;
}

#define CASE(kernel, ...) \
  {#kernel, [](Data& d) { kernel<false> __VA_ARGS__; }, [](Data& d) { kernel<true> __VA_ARGS__; }}

int main(int argc, char** argv) {
  const Case cases[] = {
      CASE(uninitialised, <<<1, 32>>>(d.y)), CASE(unordered, <<<1, 32>>>(d.y)),     CASE(no_arrivals, <<<1, 32>>>(d.y)),
      CASE(too_many, <<<1, 32>>>(d.y)),      CASE(again, <<<1, 32>>>(d.y)),         CASE(old_phase, <<<1, 32>>>(d.y)),
      CASE(missing, <<<1, 64>>>(d.y)),       CASE(reads_early, <<<1, 64>>>(d.y)),   CASE(overwrites, <<<1, 64>>>(d.y)),
      CASE(relaxed, <<<1, 64>>>(d.y)),       CASE(after_the_end, <<<2, 32>>>(d.y)),
  };
  return run_case(cases, argc, argv);
}
