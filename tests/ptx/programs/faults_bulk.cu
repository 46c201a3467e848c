// What goes wrong with bulk copies, and sound twins.
#include "faults.h"
#include "mbarriers.h"

// 32 floats are copied in, and read after the wait.
struct Copy {
  int bytes = 128, to = 0, from = 0;
  bool waits = true;
};
__device__ void copy(const float* x, float* y, Copy c) {
  __shared__ __align__(16) float s[32];
  __shared__ Mbarrier m;
  if (threadIdx.x == 0) init(&m, 1);
  __syncwarp();
  if (threadIdx.x == 0) {
    arrive_and_expect(&m, 128);
    copy_in(s + c.to, x + c.from, c.bytes, &m);
  }
  if (c.waits) wait(&m, 0);
  y[threadIdx.x] = s[threadIdx.x];
  wait(&m, 0);
}

template <bool planted>
__global__ void size(const float* x, float* y) {
  copy(x, y, {.bytes = planted ? 124 : 128});
}
template <bool planted>
__global__ void alignment(const float* x, float* y) {
  copy(x, y, {.from = planted ? 1 : 4});
}
template <bool planted>
__global__ void global_bounds(const float* x, float* y) {
  copy(x, y, {.from = planted ? 256 - 28 : 256 - 32});
}
template <bool planted>
__global__ void shared_bounds(const float* x, float* y) {
  copy(x, y, {.to = planted ? 64 : 0});
}
template <bool planted>
__global__ void no_wait(const float* x, float* y) {
  copy(x, y, {.waits = !planted});
}

// The phase does not know of the copy, and completes without it.
template <bool planted>
__global__ void not_expected(const float* x, float* y) {
  __shared__ __align__(16) float s[32];
  __shared__ Mbarrier m;
  if (threadIdx.x == 0) init(&m, 1);
  __syncwarp();
  if (threadIdx.x == 0) {
    if (!planted) arrive_and_expect(&m, 128);
    copy_in(s, x, 128, &m);
    if (planted) arrive(&m);
  }
  __syncwarp();
  if (planted || passed(&m, 0)) y[threadIdx.x] = s[threadIdx.x];
}

#define CASE(kernel) \
  {#kernel, [](Data& d) { kernel<false><<<1, 32>>>(d.x, d.y); }, [](Data& d) { kernel<true><<<1, 32>>>(d.x, d.y); }}

int main(int argc, char** argv) {
  const Case cases[] = {CASE(size),          CASE(alignment), CASE(global_bounds),
                        CASE(shared_bounds), CASE(no_wait),   CASE(not_expected)};
  return run_case(cases, argc, argv);
}
