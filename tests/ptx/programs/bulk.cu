// Bulk copies: a pipeline that brings rows in and takes results out, and a recurrence whose state goes to the other
// blocks of a cluster as one copy each.
#include <cooperative_groups.h>

#include "check.h"
#include "mbarriers.h"

namespace cg = cooperative_groups;

// y = 2 x + 1 by rows. One thread of the first warp copies ahead, the second warp computes, and one of it copies back.
constexpr int stages = 2, width = 64;
__global__ void pipeline(const float* x,  // [rows, width]
                         float* y,        // [rows, width]
                         int rows) {
  __shared__ __align__(16) float in[stages][width], out[stages][width];
  __shared__ Mbarrier full[stages], empty[stages];
  const int l = threadIdx.x % 32;
  if (threadIdx.x == 0)
    for (int k = 0; k < stages; ++k) init(&full[k], 1), init(&empty[k], 1);
  __syncthreads();
  for (int row = 0; row < rows; ++row) {
    const int k = row % stages, parity = row / stages % 2;
    if (threadIdx.x == 0) {
      wait(&empty[k], parity ^ 1);
      arrive_and_expect(&full[k], sizeof in[k]);
      copy_in(in[k], x + row * width, sizeof in[k] / 2, &full[k]);
      copy_in(in[k] + width / 2, x + row * width + width / 2, sizeof in[k] / 2, &full[k]);
    } else if (threadIdx.x >= 32) {
      if (l == 0) wait_for_sources<stages - 1>();  // out[k] has been read
      __syncwarp();
      wait(&full[k], parity);
      for (int i = l; i < width; i += 32) out[k][i] = 2 * in[k][i] + 1;
      proxy_fence();
      __syncwarp();
      if (l == 0) {
        arrive(&empty[k]);
        copy_out(y + row * width, out[k], sizeof out[k]);
      }
    }
  }
  if (threadIdx.x == 32) wait_for_sources<0>();
}

// h1 = (the sum of h0) / H + h0 for each unit, T times, by a cluster of 4 blocks with 32 units each.
constexpr int units = 32, H = 4 * units;
__global__ void __cluster_dims__(4) recurrence(const float* x,  // [H]
                                               float* y,        // [H]
                                               int T) {
  __shared__ __align__(16) float h[2][H], own[2][units];
  __shared__ Mbarrier arrived[2];
  const cg::cluster_group cluster = cg::this_cluster();
  const unsigned rank = cluster.block_rank(), unit = rank * units + threadIdx.x;
  for (unsigned k = threadIdx.x; k < H; k += units) h[0][k] = x[k];
  if (threadIdx.x == 0) init(&arrived[0], 1), init(&arrived[1], 1);
  cluster.sync();
  for (int t = 0; t < T; ++t) {
    const int from = t % 2, to = from ^ 1;
    if (t > 0) wait(&arrived[from], (t - 1) / 2 % 2);
    float sum = 0;
    for (int k = 0; k < H; ++k) sum += h[from][k];
    own[to][threadIdx.x] = sum / H + h[from][unit];
    proxy_fence();
    __syncwarp();
    if (threadIdx.x == 0) arrive_and_expect(&arrived[to], sizeof h[to]);
    cluster.sync();  // all have read what is now written over
    if (threadIdx.x < 4) copy_across(&h[to][rank * units], own[to], sizeof own[to], &arrived[to], threadIdx.x);
  }
  wait(&arrived[T % 2], (T - 1) / 2 % 2);
  y[unit] = h[T % 2][unit];
  cluster.sync();
}

int main() {
  {
    const int rows = 7;
    const auto x = uniforms(rows * width);
    Array<float> dx(x), y(rows * width);
    pipeline<<<1, 64>>>(dx, y, rows);
    const auto got = y.host();
    Comparison compare{"bulk pipeline", 1e-6};
    for (int i = 0; i < rows * width; ++i) compare(got[i], 2 * x[i] + 1);
  }
  const int T = 5;
  const auto x = uniforms(H);
  Array<float> dx(x), y(H);
  recurrence<<<4, units>>>(dx, y, T);
  const auto got = y.host();
  std::vector<double> h(x.begin(), x.end());
  for (int t = 0; t < T; ++t) {
    double sum = 0;
    for (const double v : h) sum += v;
    for (double& v : h) v += sum / H;
  }
  Comparison compare{"bulk recurrence", 1e-5};
  for (int i = 0; i < H; ++i) compare(got[i], h[i]);
}
