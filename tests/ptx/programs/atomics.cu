// Atomics of all kinds on global and shared memory, and a lock.
#include <cuda_fp16.h>

#include "check.h"

struct Totals {
  double half_steps;
  unsigned long long threes, largest;
  int smallest, either, both, parity, swapped, wrapped;
  float sum;
  half2 pairs;
};

__global__ void accumulate(Totals* t) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&t->half_steps, .5);
  atomicAdd(&t->threes, 3ull);
  atomicMax(&t->largest, static_cast<unsigned long long>(i));
  atomicMin(&t->smallest, -i);
  atomicOr(&t->either, 1 << i % 20);
  atomicAnd(&t->both, ~(1 << i % 20));
  atomicXor(&t->parity, i);
  atomicExch(&t->swapped, 7);
  atomicInc(reinterpret_cast<unsigned*>(&t->wrapped), 9);
  atomicAdd(&t->sum, .25f);
  if (i < 4) atomicAdd(&t->pairs, __floats2half2_rn(i, -i));
}

__global__ void histogram(const int* x, int* out, int n) {
  __shared__ int bins[16];
  if (threadIdx.x < 16) bins[threadIdx.x] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) atomicAdd(&bins[x[i] & 15], 1);
  __syncthreads();
  if (threadIdx.x < 16) out[threadIdx.x] = bins[threadIdx.x];
}

__global__ void locked(int* lock, int* value) {
  for (bool done = false; !done;)
    if (atomicCAS(lock, 0, 1) == 0) {
      __threadfence();
      *value += 1;
      __threadfence();
      atomicExch(lock, 0);
      done = true;
    }
}

int main() {
  Array<Totals> dt(1);
  Totals start{};
  start.both = -1;
  dt.set({start});
  accumulate<<<4, 64>>>(dt);
  const Totals t = dt.host()[0];
  Comparison compare{"atomics", 0};
  compare(t.half_steps, 128), compare(t.threes, 768), compare(t.largest, 255), compare(t.smallest, -255);
  compare(t.either, (1 << 20) - 1), compare(t.both, -1 << 20), compare(t.parity, 0), compare(t.swapped, 7);
  compare(t.wrapped, 256 % 10), compare(t.sum, 64);
  compare(__low2float(t.pairs), 6), compare(__high2float(t.pairs), -6);

  std::vector<int> x(1000), expected(16);
  for (int& v : x) ++expected[(v = static_cast<int>(random_bits()() >> 3)) & 15];
  Array<int> dx(x), bins(16), lock(2);
  histogram<<<1, 96>>>(dx, bins, 1000);
  const auto got = bins.host();
  for (int i = 0; i < 16; ++i) compare(got[i], expected[i]);
  lock.zero();
  locked<<<4, 64>>>(lock, lock + 1);
  compare(lock.host()[1], 256);
}
