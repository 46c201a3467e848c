// Launchers with C linkage for a shared library.
#include <cuda_runtime.h>

__global__ void axpy(float a, const float* x, float* y, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) y[i] += a * x[i];
}

__global__ void race(float* y) { y[0] = static_cast<float>(threadIdx.x); }

__global__ void trap() { __trap(); }

extern "C" int run_axpy(float a, const float* x, float* y, int n) {
  axpy<<<(n + 63) / 64, 64>>>(a, x, y, n);
  return cudaGetLastError();
}

extern "C" int run_race(float* y) {
  race<<<1, 64>>>(y);
  return cudaGetLastError();
}

extern "C" int run_trap() {
  trap<<<1, 32>>>();
  const cudaError_t synchronised = cudaDeviceSynchronize();
  return synchronised == cudaGetLastError() ? synchronised : -1;
}
