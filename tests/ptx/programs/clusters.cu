// Clusters of blocks that use each other's shared memory: a reduction, a histogram, a recurrence whose state travels
// by distributed shared memory, a message, and what PTX names without CUDA C++ having a word for it.
#include <cooperative_groups.h>

#include <cstring>

#include "check.h"

namespace cg = cooperative_groups;

__device__ unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

__device__ unsigned mapped(const void* p, unsigned rank) {
  unsigned address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(rank));
  return address;
}

// Each cluster of 2 x 2 blocks sums its tile of x; rank 0 reads the sums of the others.
__global__ void __cluster_dims__(2, 2, 1) reduce(const float* x,  // [rows, columns] in tiles of a block
                                                 float* sums,     // [clusters]
                                                 int columns) {
  __shared__ float own;
  const cg::cluster_group cluster = cg::this_cluster();
  if (threadIdx.x == 0) own = 0;
  __syncthreads();
  const int column = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&own, x[static_cast<int>(blockIdx.y) * columns + column]);
  cluster.sync();
  if (cluster.block_rank() == 0 && threadIdx.x == 0) {
    float sum = 0;
    for (unsigned r = 0; r < cluster.num_blocks(); ++r) sum += *cluster.map_shared_rank(&own, r);
    sums[blockIdx.y / 2 * (gridDim.x / 2) + blockIdx.x / 2] = sum;
  }
  cluster.sync();  // until then the others stay, and with them their memory
}

// Bins spread over the blocks of a cluster, 16 each.
__global__ void histogram(const unsigned* x, unsigned* bins, int n) {
  __shared__ unsigned own[16];
  const cg::cluster_group cluster = cg::this_cluster();
  if (threadIdx.x < 16) own[threadIdx.x] = 0;
  cluster.sync();
  const unsigned thread = static_cast<unsigned>(cluster.thread_rank());
  for (unsigned i = thread; i < static_cast<unsigned>(n); i += cluster.num_threads()) {
    const unsigned bin = x[i] % (16 * cluster.num_blocks());
    if (i % 2) atomicAdd(cluster.map_shared_rank(own + bin % 16, bin / 16), 1u);
    else asm volatile("red.shared::cluster.add.u32 [%0], 1;" ::"r"(mapped(own + bin % 16, bin / 16)) : "memory");
  }
  cluster.sync();
  if (threadIdx.x < 16) bins[16 * cluster.block_rank() + threadIdx.x] = own[threadIdx.x];
}

// h1 = tanh(U h0 + x), T times, by one cluster: each block has `units` of H rows of U, and gives its part of h1 to all.
// With two buffers one barrier a step is enough: who writes h1 has passed the barrier after which nobody reads it.
constexpr int units = 16;
__global__ void recurrence(const float* x,  // [T, H]
                           const float* U,  // [H, H]
                           float* output,   // [T, H]
                           int T) {
  extern __shared__ float h[];  // [2, H]
  const cg::cluster_group cluster = cg::this_cluster();
  const int H = units * static_cast<int>(cluster.num_blocks());
  const int unit = static_cast<int>(cluster.block_rank()) * units + static_cast<int>(threadIdx.x);
  for (int k = static_cast<int>(threadIdx.x); k < H; k += units) h[k] = 0;
  cluster.sync();
  for (int t = 0; t < T; ++t) {
    const float* h0 = h + t % 2 * H;
    float sum = x[t * H + unit];
    for (int k = 0; k < H; ++k) sum += U[unit * H + k] * h0[k];
    const float h1 = tanhf(sum);
    output[t * H + unit] = h1;
    for (unsigned r = 0; r < cluster.num_blocks(); ++r) cluster.map_shared_rank(h, r)[(t + 1) % 2 * H + unit] = h1;
    cluster.sync();
  }
}

// Each block passes four numbers on to the next, which waits for a flag beside them.
__global__ void message(const float4* x, float4* y) {
  __shared__ float4 data;
  __shared__ unsigned flag;
  unsigned rank, blocks;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  if (threadIdx.x == 0) flag = 0;
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
  if (threadIdx.x == 0) {
    const unsigned next = (rank + 1) % blocks;
    const float4 v = x[blockIdx.x];
    asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(mapped(&data, next)), "f"(v.x), "f"(v.y),
                 "f"(v.z), "f"(v.w)
                 : "memory");
    if (rank % 2) {
      asm volatile("st.release.cluster.shared::cluster.u32 [%0], 1;" ::"r"(mapped(&flag, next)) : "memory");
    } else {
      asm volatile("fence.acq_rel.cluster;" ::: "memory");
      asm volatile("st.relaxed.cluster.shared::cluster.u32 [%0], 1;" ::"r"(mapped(&flag, next)) : "memory");
    }
  }
  if (threadIdx.x == blockDim.x - 1) {
    for (unsigned seen = 0; !seen;)
      asm volatile("ld.acquire.cluster.shared::cta.u32 %0, [%1];" : "=r"(seen) : "r"(shared_address(&flag)) : "memory");
    y[blockIdx.x] = data;
  }
  // A block that has its message may go; who has sent must not write to one that has.
  asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;" ::: "memory");
}

// What a block does between arriving and waiting is not for others to see. A fence makes a relaxed arrival a release.
__global__ void split_barrier(float* y) {
  __shared__ float own[2];
  const unsigned rank = cg::this_cluster().block_rank();
  float seen = 0;
  if (threadIdx.x == 0) own[0] = static_cast<float>(rank + 1);
  if (threadIdx.x == 0) asm volatile("fence.acq_rel.cluster;" ::: "memory");
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
  if (threadIdx.x == 0) own[1] = 10;
  __syncthreads();
  if (threadIdx.x == 32) seen = own[1];
  asm volatile("barrier.cluster.wait;" ::: "memory");
  if (threadIdx.x == 32) {
    float other;
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(other) : "r"(mapped(own, rank ^ 1)) : "memory");
    y[blockIdx.x] = seen + other;
  }
  cg::this_cluster().sync();
}

// Every block of a grid of clusters: where it is, as [block][value]; and a barrier of the grid between.
constexpr int values = 12;
__global__ void places(unsigned* y, unsigned* total) {
  __shared__ unsigned own;
  const cg::cluster_group cluster = cg::this_cluster();
  own = 0;
  const dim3 in = cluster.block_index(), of = cluster.dim_blocks();
  unsigned id[3], ids[3], is_explicit, window, address;
  asm("mov.u32 %0, %%clusterid.x;\nmov.u32 %1, %%clusterid.y;\nmov.u32 %2, %%clusterid.z;"
      : "=r"(id[0]), "=r"(id[1]), "=r"(id[2]));
  asm("mov.u32 %0, %%nclusterid.x;\nmov.u32 %1, %%nclusterid.y;\nmov.u32 %2, %%nclusterid.z;"
      : "=r"(ids[0]), "=r"(ids[1]), "=r"(ids[2]));
  asm("{ .reg .pred p; mov.pred p, %%is_explicit_cluster; selp.u32 %0, 1, 0, p; }" : "=r"(is_explicit));
  const unsigned last = cluster.num_blocks() - 1;
  unsigned* far = cluster.map_shared_rank(&own, last);
  asm("{ .reg .pred p; isspacep.shared::cluster p, %1; selp.u32 %0, 1, 0, p; }" : "=r"(window) : "l"(far));
  asm("{ .reg .b64 a; cvta.to.shared::cluster.u64 a, %1; cvt.u32.u64 %0, a; }" : "=r"(address) : "l"(far));
  const unsigned mine[values] = {in.x + 10 * in.y,
                                 of.x + 10 * of.y + 100 * of.z,
                                 id[0] + 10 * id[1] + 100 * id[2],
                                 ids[0] + 10 * ids[1] + 100 * ids[2],
                                 cluster.block_rank(),
                                 last + 1,
                                 is_explicit,
                                 window,
                                 cluster.query_shared_rank(far),
                                 address == mapped(&own, last),
                                 cluster.query_shared_rank(&own),
                                 0};
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  for (int i = 0; i < values; ++i) y[block * values + i] = mine[i];
  cluster.sync();
  atomicAdd(far, 1);
  cg::this_grid().sync();
  if (block == 0)
    for (unsigned i = 0; i < gridDim.x * gridDim.y * gridDim.z; ++i) *total += y[i * values + 5];
  if (cluster.block_rank() == last) y[block * values + values - 1] = own;
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int block, dim3 cluster, std::size_t shared, bool cooperative,
            Arguments... arguments) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {cluster.x, cluster.y, cluster.z};
  attributes[1].id = cudaLaunchAttributeCooperative;
  attributes[1].val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = dim3(block), config.dynamicSmemBytes = shared;
  config.attrs = attributes, config.numAttrs = cooperative ? 2 : 1;
  CHECK(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

void check_reduce() {
  const int rows = 4, columns = 6 * 64;
  const auto x = uniforms(rows * columns);
  Array<float> dx(x), sums(2 * 3);
  reduce<<<dim3(6, 4), 64>>>(dx, sums, columns);
  const auto got = sums.host();
  Comparison compare{"reduction", 1e-5};
  for (int c = 0; c < 6; ++c) {
    double sum = 0;
    for (int row = c / 3 * 2; row < c / 3 * 2 + 2; ++row)
      for (int k = 0; k < 128; ++k) sum += x[row * columns + c % 3 * 128 + k];
    compare(got[c], sum);
  }
}

void check_histogram() {
  std::vector<unsigned> x(500), right(64);
  for (unsigned& v : x) ++right[(v = random_bits()()) % 64];
  Array<unsigned> dx(x), bins(64);
  launch(histogram, 4, 64, 4, 0, false, dx.data, bins.data, 500);
  const auto got = bins.host();
  Comparison compare{"histogram", 0};
  for (int i = 0; i < 64; ++i) compare(got[i], right[i]);
}

void check_recurrence(int blocks) {
  const int T = 5, H = units * blocks;
  const auto x = uniforms(T * H), U = uniforms(H * H, .1f);
  Array<float> dx(x), dU(U), output(T * H);
  CHECK(cudaFuncSetAttribute(recurrence, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  launch(recurrence, blocks, units, blocks, 2 * H * sizeof(float), false, dx.data, dU.data, output.data, T);
  const auto got = output.host();
  Comparison compare{"recurrence", 1e-5};
  std::vector<double> h(H);
  for (int t = 0; t < T; ++t) {
    const auto h0 = h;
    for (int i = 0; i < H; ++i) {
      double sum = x[t * H + i];
      for (int k = 0; k < H; ++k) sum += U[i * H + k] * h0[k];
      h[i] = std::tanh(sum);
      compare(got[t * H + i], h[i]);
    }
  }
}

void check_message() {
  const auto x = uniforms(4 * 8);
  Array<float> dx(x), y(4 * 8);
  launch(message, 8, 64, 4, 0, false, reinterpret_cast<float4*>(dx.data), reinterpret_cast<float4*>(y.data));
  const auto got = y.host();
  Comparison compare{"message", 0};
  for (int b = 0; b < 8; ++b)
    for (int i = 0; i < 4; ++i) compare(got[4 * b + i], x[4 * (b / 4 * 4 + (b + 3) % 4) + i]);
}

void check_split_barrier() {
  Array<float> y(4);
  launch(split_barrier, 4, 64, 2, 0, false, y.data);
  const auto got = y.host();
  Comparison compare{"split barrier", 0};
  for (int b = 0; b < 4; ++b) compare(got[b], 10 + (b % 2 ? 1 : 2));
}

void check_places(bool clusters) {
  const unsigned cx = clusters ? 2 : 1, cy = clusters ? 3 : 1, size = cx * cy;
  Array<unsigned> y(24 * values), total(1);
  y.zero(), total.zero();
  launch(places, dim3(4, 3, 2), 1, clusters ? dim3(2, 3) : dim3(0), 0, true, y.data, total.data);
  const auto got = y.host();
  Comparison compare{"places", 0};
  compare(total.host()[0], 24. * size);
  for (unsigned b = 0; b < 24; ++b) {
    const unsigned bx = b % 4, by = b / 4 % 3, bz = b / 12, rank = bx % cx + by % cy * cx;
    const unsigned right[values] = {bx % cx + 10 * (by % cy),
                                    cx + 10 * cy + 100,
                                    bx / cx + 10 * (by / cy) + 100 * bz,
                                    4 / cx + 10 * (3 / cy) + 200,
                                    rank,
                                    size,
                                    clusters,
                                    1,
                                    size - 1,
                                    1,
                                    rank,
                                    rank == size - 1 ? size : 0};
    for (int i = 0; i < values; ++i) compare(got[b * values + i], right[i]);
  }
}

int main() {
  check_reduce();
  check_histogram();
  for (const int blocks : {1, 3, 8, 16}) check_recurrence(blocks);
  check_message();
  check_split_barrier();
  for (const bool clusters : {false, true}) check_places(clusters);
}
