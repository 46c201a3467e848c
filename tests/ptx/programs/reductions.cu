// Static and dynamic shared memory, shuffles, votes, matches, reductions, and counting barriers.
#include "check.h"

extern __shared__ float partial[];

__global__ void sum_of_functions(const float* x, float* y, float* total, int n) {
  float sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    y[i] = tanhf(x[i]) + expf(x[i]) * .5f + 1 / (1 + __expf(-x[i]));
    sum += y[i];
  }
  for (int offset = 16; offset; offset /= 2) sum += __shfl_down_sync(~0u, sum, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  float v = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.f;
  for (int offset = 16; offset; offset /= 2) v += __shfl_xor_sync(~0u, v, offset);
  if (threadIdx.x == 0) atomicAdd(total, v);
}

__global__ void reverse(const float* x, float* y) {
  __shared__ float mine[256];
  mine[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = mine[255 - threadIdx.x];
}

struct Votes {
  unsigned ballot, active, same, up, index, any, all;
  int sum;
};

__global__ void votes(const int* x, Votes* out) {
  const int v = x[threadIdx.x], lane = threadIdx.x;
  Votes r{};
  r.ballot = __ballot_sync(~0u, v > 0);
  r.any = __any_sync(~0u, v > 1);
  r.all = __all_sync(~0u, v > -3);
  r.same = __match_any_sync(~0u, v);
  r.up = __shfl_up_sync(~0u, lane, 3, 16);
  r.index = __shfl_sync(~0u, lane, 5, 8);
  if (v > 0) {
    r.active = __activemask();
    r.sum = __reduce_add_sync(r.active, v);
  }
  out[lane] = r;
}

__global__ void counts(int* out) {
  const int t = threadIdx.x;
  const int thirds = __syncthreads_count(t % 3 == 0), five = __syncthreads_or(t == 5),
            small = __syncthreads_and(t < 64);
  if (t == 63) out[0] = thirds, out[1] = five != 0, out[2] = small != 0;
}

int main() {
  const int n = 5000;
  const auto x = uniforms(n, 3);
  Array<float> dx(x), dy(n), total(1);
  total.zero();
  sum_of_functions<<<6, 256, 256 / 32 * sizeof(float)>>>(dx, dy, total, n);
  const auto y = dy.host();
  double sum = 0;
  {
    Comparison compare{"elementwise", 1e-5};
    for (int i = 0; i < n; ++i) {
      const double v = std::tanh(x[i]) + std::exp(x[i]) * .5 + 1 / (1 + std::exp(-static_cast<double>(x[i])));
      compare(y[i], v);
      sum += v;
    }
    compare(total.host()[0], sum);
  }
  Array<float> reversed(256);
  reverse<<<1, 256>>>(dx, reversed);
  const auto r = reversed.host();
  {
    Comparison compare{"shared memory", 0};
    for (int i = 0; i < 256; ++i) compare(r[i], x[255 - i]);
  }
  std::vector<int> q(32);
  unsigned positive = 0;
  int positives = 0;
  for (int i = 0; i < 32; ++i) {
    q[i] = i * 7 % 5 - 2;
    if (q[i] > 0) positive |= 1u << i, positives += q[i];
  }
  Array<int> dq(q), dc(3);
  Array<Votes> dv(32);
  votes<<<1, 32>>>(dq, dv);
  const auto v = dv.host();
  Comparison compare{"votes", 0};
  for (int i = 0; i < 32; ++i) {
    unsigned same = 0;
    for (int k = 0; k < 32; ++k) same |= static_cast<unsigned>(q[k] == q[i]) << k;
    compare(v[i].ballot, positive);
    compare(v[i].any != 0, 1);
    compare(v[i].all != 0, 1);
    compare(v[i].same, same);
    compare(v[i].up, i % 16 < 3 ? i : i - 3);
    compare(v[i].index, i / 8 * 8 + 5);
    compare(v[i].active, q[i] > 0 ? positive : 0);
    compare(v[i].sum, q[i] > 0 ? positives : 0);
  }
  counts<<<1, 64>>>(dc);
  const auto c = dc.host();
  compare(c[0], 22), compare(c[1], 1), compare(c[2], 1);
}
