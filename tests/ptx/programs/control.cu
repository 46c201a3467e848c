// Predication, loops of different lengths, calls, parameters by value, constants, vector accesses, printf.
#include "check.h"

struct Parameters {
  float factors[3];
  int n;
  const float* x;
};

__constant__ float weights[4];
__device__ float offset = 3.f;

__noinline__ __device__ float dot(const float* x, int n, float factor) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += x[i] * factor;
  return sum;
}

__global__ void call(Parameters p, float* y) {
  const int t = threadIdx.x;
  y[t] = dot(p.x, t % 5 + 1, p.factors[t % 3]);
  if (t == 3) printf("thread %d of %s: %.2f\n", t, "call", 1.5);
}

__global__ void convolve(const float* __restrict__ x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float sum = offset;
  for (int k = 0; k < 4; ++k) sum = fmaf(weights[k], i + k < n ? __ldg(x + i + k) : 0.f, sum);
  y[i] = sum;
}

__global__ void collatz(int* steps) {
  int v = threadIdx.x + blockIdx.x * blockDim.x + 1, n = 0;
  while (v != 1) {
    v = v % 2 ? 3 * v + 1 : v / 2;
    if (++n > 1000) break;
  }
  steps[threadIdx.x + blockIdx.x * blockDim.x] = n;
}

template <int width>
__global__ void scale(const float* __restrict__ x, float* y, int n, float s) {
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) * width;
  if (i + width > n) return;
  if constexpr (width == 4) {
    const float4 v = *reinterpret_cast<const float4*>(x + i);
    *reinterpret_cast<float4*>(y + i) = make_float4(s * v.x, s * v.y, s * v.z, s * v.w);
  } else {
    y[i] = x[i] * s;
  }
}

int main() {
  const int n = 1024;
  const auto x = uniforms(n);
  Array<float> dx(x), dy(64), dc(n), four(n), one(n);
  call<<<1, 64>>>({{1, 2, 3}, n, dx}, dy);
  const auto y = dy.host();
  Comparison compare{"control", 1e-6};
  for (int t = 0; t < 64; ++t) {
    float sum = 0;
    for (int k = 0; k <= t % 5; ++k) sum += x[k] * static_cast<float>(t % 3 + 1);
    compare(y[t], sum);
  }
  const float w[4] = {1, 2, 3, 4};
  CHECK(cudaMemcpyToSymbol(weights, w, sizeof w));
  convolve<<<8, 128>>>(dx, dc, n);
  cudaStream_t stream;
  CHECK(cudaStreamCreate(&stream));
  scale<4><<<2, 128, 0, stream>>>(dx, four, n, 2.f);
  scale<1><<<8, 128, 0, stream>>>(dx, one, n, 3.f);
  CHECK(cudaStreamSynchronize(stream));
  const auto c = dc.host(), f = four.host(), o = one.host();
  for (int i = 0; i < n; ++i) {
    float sum = 3;
    for (int k = 0; k < 4; ++k) sum = fmaf(w[k], i + k < n ? x[i + k] : 0.f, sum);
    compare(c[i], sum), compare(f[i], 2 * x[i]), compare(o[i], 3 * x[i]);
  }
  Array<int> steps(100);
  collatz<<<2, 50>>>(steps);
  const auto s = steps.host();
  for (int i = 0; i < 100; ++i) {
    int v = i + 1, k = 0;
    for (; v != 1; ++k) v = v % 2 ? 3 * v + 1 : v / 2;
    compare(s[i], k);
  }
}
