// Launches that a device's limits allow or refuse: `limits` prints the CUDA error of each.
#include <cooperative_groups.h>

#include "check.h"

__global__ void plain(float* y) { y[0] = 1; }

__global__ void __launch_bounds__(128) bounded(float* y) { y[0] = 1; }

__global__ void dynamic(float* y) {
  extern __shared__ float s[];
  if (threadIdx.x == 0) s[0] = 1, y[0] = s[0];
}

// Each thread keeps some hundred values at once.
__global__ void many_registers(float* y) {
  float v[160];
#pragma unroll
  for (int i = 0; i < 160; ++i) v[i] = y[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 160; ++i) y[(i * 7 + 1) % 160] = v[i] * v[(i + 80) % 160];
}

__global__ void everyone(float* y) {
  cooperative_groups::this_grid().sync();
  if (blockIdx.x == 0 && threadIdx.x == 0) y[0] = 1;
}

void say(const char* what) { std::printf("%s: %s\n", what, cudaGetErrorName(cudaGetLastError())); }

void launch_dynamic(float* y, int bytes, bool opt_in, const char* what) {
  if (opt_in) cudaFuncSetAttribute(dynamic, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  cudaGetLastError();
  dynamic<<<1, 32, bytes>>>(y);
  say(what);
}

void launch_everyone(float* y, int blocks, int shared, const char* what) {
  void* arguments[] = {&y};
  cudaFuncSetAttribute(everyone, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  const auto kernel = reinterpret_cast<const void*>(everyone);
  cudaLaunchCooperativeKernel(kernel, dim3(blocks), dim3(32), arguments, shared, nullptr);
  say(what);
}

void launch_with(cudaLaunchAttribute attribute, float* y, const char* what) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(4), config.blockDim = dim3(32);
  config.attrs = &attribute, config.numAttrs = 1;
  cudaLaunchKernelEx(&config, everyone, y);
  say(what);
}

int main() {
  Array<float> y(std::vector<float>(160));
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  std::printf("device: %s, %d SMs\n", device.name, device.multiProcessorCount);
  plain<<<1, 1024>>>(y);
  say("1024 threads");
  plain<<<1, 1025>>>(y);
  say("1025 threads");
  plain<<<dim3(1, 65536), 32>>>(y);
  say("65536 blocks in y");
  bounded<<<1, 128>>>(y);
  say("launch bounds kept");
  bounded<<<1, 256>>>(y);
  say("launch bounds exceeded");
  many_registers<<<1, 64>>>(y);
  say("registers of 64 threads");
  many_registers<<<1, 1024>>>(y);
  say("registers of 1024 threads");
  launch_dynamic(y, 48 << 10, false, "48 KiB shared");
  launch_dynamic(y, 64 << 10, false, "64 KiB shared, not opted in");
  launch_dynamic(y, 64 << 10, true, "64 KiB shared");
  launch_dynamic(y, 160 << 10, true, "160 KiB shared");
  launch_dynamic(y, 227 << 10, true, "227 KiB shared");
  launch_everyone(y, device.multiProcessorCount, 40 << 10, "a cooperative block an SM");
  launch_everyone(y, 33 * device.multiProcessorCount, 0, "33 cooperative blocks an SM");
  const int half = static_cast<int>(device.sharedMemPerMultiprocessor) / 2;
  launch_everyone(y, 2 * device.multiProcessorCount, half, "two cooperative blocks of half an SM's shared memory");
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative, attribute.val.cooperative = 1;
  launch_with(attribute, y, "cooperative by an attribute");
  attribute.id = cudaLaunchAttributeClusterDimension, attribute.val.clusterDim = {2, 1, 1};
  launch_with(attribute, y, "a cluster");
}
