// Launches of clusters that a device allows or refuses: `limits_cluster` prints the CUDA error of each.
#include "check.h"

__global__ void plain(float* y) { y[blockIdx.x] = 1; }
__global__ void __cluster_dims__(2, 1, 1) pairs(float* y) { y[blockIdx.x] = 1; }
__global__ void __launch_bounds__(32, 1, 4) at_most_four(float* y) { y[blockIdx.x] = 1; }

void say(const char* what) { std::printf("%s: %s\n", what, cudaGetErrorName(cudaGetLastError())); }

struct Launch {
  cudaLaunchAttribute attributes[2]{};
  cudaLaunchConfig_t config{};

  Launch(dim3 grid, dim3 cluster, bool cooperative = false, std::size_t shared = 0) {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {cluster.x, cluster.y, cluster.z};
    attributes[1].id = cudaLaunchAttributeCooperative;
    attributes[1].val.cooperative = 1;
    config.gridDim = grid, config.blockDim = dim3(32), config.dynamicSmemBytes = shared;
    config.attrs = attributes, config.numAttrs = cooperative ? 2 : 1;
  }
};

int main() {
  Array<float> y(2048);
  const auto launch = [&](void (*kernel)(float*), const Launch& l, const char* what) {
    cudaLaunchKernelEx(&l.config, kernel, y.data);
    say(what);
  };
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  std::printf("device: %s, clusters %d\n", device.name, device.clusterLaunch);
  pairs<<<4, 32>>>(y);
  say("pairs of 4 blocks");
  pairs<<<3, 32>>>(y);
  say("pairs of 3 blocks");
  launch(pairs, {4, 2}, "pairs by an attribute, too");
  launch(pairs, {4, 4}, "fours of a kernel for pairs");
  launch(plain, {dim3(4, 3), dim3(2, 3)}, "2 x 3 of 4 x 3 blocks");
  launch(plain, {dim3(4, 3), dim3(3, 2)}, "3 x 2 of 4 x 3 blocks");
  launch(at_most_four, {8, 4}, "four of at most four");
  launch(at_most_four, {8, 8}, "eight of at most four");
  launch(plain, {16, 8}, "8 blocks");
  launch(plain, {16, 16}, "16 blocks, not allowed");
  CHECK(cudaFuncSetAttribute(plain, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  launch(plain, {16, 16}, "16 blocks, allowed");
  launch(plain, {17, 17}, "17 blocks");
  const int most = static_cast<int>(device.sharedMemPerBlockOptin);
  CHECK(cudaFuncSetAttribute(plain, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  const int sms = device.multiProcessorCount / 4 * 4;
  launch(plain, Launch(sms, 4, true, most), "cooperative, a block an SM");
  launch(plain, Launch(sms + 4, 4, true, most), "cooperative, more");
  const Launch full(4, 4, false, most);
  int clusters = 0;
  CHECK(cudaOccupancyMaxActiveClusters(&clusters, plain, &full.config));
  std::printf("clusters at a time: %d\n", clusters);
}
