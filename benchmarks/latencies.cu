// What it takes on a card that one block's write is seen by another, in cycles: docs/cuda.md has a table of it.
//     nvcc -O3 -std=c++17 -arch=sm_90 benchmarks/latencies.cu -o build/latencies && build/latencies
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>

namespace {

using Word = unsigned;
constexpr int rounds = 4000;

void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", call, cudaGetErrorString(error));
  std::exit(1);
}

template <bool ordered>
__device__ Word load(const Word* p) {
  Word word;
  if (ordered) asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(p) : "memory");
  else asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(p) : "memory");
  return word;
}
template <bool ordered>
__device__ void store(Word* p, Word word) {
  if (ordered) asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(word) : "memory");
  else asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(word) : "memory");
}
template <bool ordered>
__device__ void count(Word* p) {
  if (ordered) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(p) : "memory");
  else asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(p) : "memory");
}

// A load that hits the second-level cache, each at the address that the last one gave.
__global__ void loads(Word* words, int, long long* cycles) {
  if (blockIdx.x) return;
  Word at = 0;
  const long long begin = clock64();
  for (int i = 0; i < rounds; ++i) at = load<false>(words + 1024 + at);
  *cycles = (clock64() - begin) / rounds + at;
}

// Two blocks answer each other.
template <bool ordered>
__global__ void messages(Word* words, int partner, long long* cycles) {
  if (blockIdx.x != 0 && static_cast<int>(blockIdx.x) != partner) return;
  const bool first = blockIdx.x == 0;
  Word *const mine = words + (first ? 0 : 64), *const other = words + (first ? 64 : 0);
  const long long begin = clock64();
  for (Word i = 1; i <= rounds; ++i) {
    if (first) store<ordered>(mine, i);
    while (load<ordered>(other) < i) {
    }
    if (!first) store<ordered>(mine, i);
  }
  if (first) *cycles = (clock64() - begin) / rounds / 2;
}

// All blocks count themselves in.
template <bool ordered>
__global__ void barriers(Word* words, int, long long* cycles) {
  const long long begin = clock64();
  for (Word i = 1; i <= rounds; ++i) {
    __syncthreads();
    if (threadIdx.x == 0) {
      count<ordered>(words);
      while (load<ordered>(words) < i * gridDim.x) {
      }
    }
    __syncthreads();
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *cycles = (clock64() - begin) / rounds;
}

__global__ void cluster_barriers(Word*, int, long long* cycles) {
  const auto cluster = cooperative_groups::this_cluster();
  const long long begin = clock64();
  for (int i = 0; i < rounds; ++i) cluster.sync();
  if (blockIdx.x == 0 && threadIdx.x == 0) *cycles = (clock64() - begin) / rounds;
}

void measure(const char* what, void (*kernel)(Word*, int, long long*), int blocks, int threads, int argument,
             int cluster = 1) {
  static Word* words = nullptr;
  static long long* cycles = nullptr;
  if (!words) check(cudaMalloc(&words, 1 << 16), "cudaMalloc"), check(cudaMalloc(&cycles, 8), "cudaMalloc");
  check(cudaMemset(words, 0, 1 << 16), "cudaMemset");
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks), config.blockDim = dim3(threads);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster, attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute, config.numAttrs = cluster > 1;
  check(cudaLaunchKernelEx(&config, kernel, words, argument, cycles), "cudaLaunchKernelEx");
  long long found = 0;
  check(cudaMemcpy(&found, cycles, 8, cudaMemcpyDeviceToHost), "cudaMemcpy");
  std::printf("%-40s %5d blocks %6lld cycles\n", what, blocks, found);
}

}  // namespace

int main() {
  measure("load from the second-level cache", loads, 1, 1, 0);
  measure("message, relaxed", messages<false>, 132, 1, 64);
  measure("message, release and acquire", messages<true>, 132, 1, 64);
  for (const int blocks : {16, 64, 128}) {
    measure("barrier, relaxed", barriers<false>, blocks, 256, 0);
    measure("barrier, release and acquire", barriers<true>, blocks, 256, 0);
  }
  for (const int cluster : {2, 8})
    measure("barrier of a cluster of as many", cluster_barriers, cluster, 256, 0, cluster);
}
