// f16, bf16 and tf32: conversions, scalar and packed arithmetic, comparisons.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "check.h"

struct Floats {
  static constexpr int count = 6;
  float of[count];
};

// What a type's arithmetic gives, as floats; the host computes the same with the header's own emulation.
template <class H>
__host__ __device__ Floats operations(float x, float y) {
  const H a = static_cast<H>(x), b = static_cast<H>(y);
  return {{static_cast<float>(a), static_cast<float>(a + b), static_cast<float>(a * b), static_cast<float>(a - b),
           static_cast<float>(a / static_cast<H>(3.f)), static_cast<float>(a < b)}};
}

template <class H>
__global__ void scalars(const float* x, Floats* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i + 1 < n) y[i] = operations<H>(x[i], x[i + 1]);
}

__global__ void packed(const float* x, float* y) {
  const int i = threadIdx.x;
  const half2 a = __floats2half2_rn(x[2 * i], x[2 * i + 1]), b = __floats2half2_rn(.5f, -.25f);
  const half2 h = __hfma2(a, b, __hadd2(__hmax2(a, b), __hgt2(a, b)));
  const __nv_bfloat162 c = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
  const __nv_bfloat162 d = __hfma2(c, c, __hmul2(c, __float2bfloat162_rn(2.f)));
  y[4 * i] = __low2float(h);
  y[4 * i + 1] = __high2float(h);
  y[4 * i + 2] = __low2float(d);
  y[4 * i + 3] = __high2float(d);
}

__global__ void to_tf32(const float* x, float* y) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x[threadIdx.x]));
  y[threadIdx.x] = __uint_as_float(bits);
}

template <class H>
void check_scalars(const char* name, double tolerance) {
  const int n = 300;
  const auto x = uniforms(n, 3);
  Array<float> dx(x);
  Array<Floats> dy(n);
  scalars<H><<<3, 100>>>(dx, dy, n);
  const auto y = dy.host();
  Comparison compare{name, tolerance};
  for (int i = 0; i + 1 < n; ++i)
    for (int k = 0; k < Floats::count; ++k) compare(y[i].of[k], operations<H>(x[i], x[i + 1]).of[k]);
}

int main() {
  // A device divides by way of float: a last bit may differ from the host's.
  check_scalars<half>("f16 scalars", 1e-3);
  check_scalars<__nv_bfloat16>("bf16 scalars", 8e-3);

  const auto x = uniforms(128, 3);
  Array<float> dx(x), dy(256), dz(128);
  packed<<<1, 64>>>(dx, dy);
  const auto y = dy.host();
  {
    Comparison compare{"packed halves", 5e-2};
    for (int i = 0; i < 128; ++i) {
      const float b = i % 2 ? -.25f : .5f, v = x[i];
      compare(y[4 * (i / 2) + i % 2], v * b + std::fmax(v, b) + (v > b));
      compare(y[4 * (i / 2) + 2 + i % 2], v * v + 2 * v);
    }
  }
  to_tf32<<<1, 128>>>(dx, dz);
  const auto z = dz.host();
  Comparison compare{"tf32", std::ldexp(1, -11)};
  for (int i = 0; i < 128; ++i) compare(z[i], x[i]), compare(std::fmod(z[i] * 1024, 1 / 1024.), 0);
}
