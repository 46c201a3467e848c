// fp32 and fp64: operators, functions, roundings, conversions.
#include "check.h"

constexpr int functions = 21, roundings = 8;

__global__ void apply_functions(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float v = x[i], a = fabsf(v);
  float* out = y + i * functions;
  out[0] = logf(a + 1e-3f);
  out[1] = powf(a, 1.7f);
  out[2] = __sinf(v) + __cosf(v);
  out[3] = erff(v);
  out[4] = rsqrtf(a + .1f);
  out[5] = __fdividef(v, 3.f);
  out[6] = expm1f(v);
  out[7] = log1pf(a);
  out[8] = fmodf(v * 100, 7.f);
  out[9] = rintf(v * 10);
  out[10] = static_cast<float>(static_cast<int>(v * 1000));
  out[11] = __saturatef(v);
  out[12] = cbrtf(v);
  asm("tanh.approx.f32 %0, %1;" : "=f"(out[13]) : "f"(v));
  out[14] = __frcp_rn(v + 2);
  out[15] = atan2f(v, .3f);
  out[16] = 1 / (1 + expf(-v));
  out[17] = tanhf(v);
  out[18] = fmaxf(fminf(v, .5f), -.5f);
  out[19] = copysignf(a + 1, v);
  out[20] = __fdividef(v, a + 1) + __fdividef(v, (a + 1.5f) * 0x1p126f) * 0x1p126f;
}

double expected(int k, float v) {
  const double a = std::fabs(v);
  switch (k) {
    case 0: return std::log(static_cast<float>(a) + 1e-3f);
    case 1: return std::pow(a, 1.7f);
    case 2: return std::sin(v) + std::cos(v);
    case 3: return std::erf(v);
    case 4: return 1 / std::sqrt(static_cast<double>(static_cast<float>(a) + .1f));
    case 5: return v / 3.;
    case 6: return std::expm1(v);
    case 7: return std::log1p(a);
    case 8: return std::fmod(v * 100, 7.f);
    case 9: return std::rint(v * 10);
    case 10: return static_cast<int>(v * 1000);
    case 11: return v < 0 ? 0 : v > 1 ? 1 : v;
    case 12: return std::cbrt(v);
    case 13: return std::tanh(v);
    case 14: return 1. / (v + 2);
    case 15: return std::atan2(v, .3f);
    case 16: return 1 / (1 + std::exp(-static_cast<double>(v)));
    case 17: return std::tanh(v);
    case 18: return v > .5 ? .5 : v < -.5 ? -.5 : v;
    case 19: return std::copysign(a + 1, v);
    default: return v / (a + 1);  // what is divided by more than 2^126 is 0
  }
}

__global__ void round_both_ways(const float* x, const double* d, float* y) {
  const int i = threadIdx.x;
  float* out = y + i * roundings;
  out[0] = __fadd_rd(x[i], 1e-9f);
  out[1] = __fadd_ru(x[i], 1e-9f);
  out[2] = __fmul_rz(x[i], 1.1f);
  out[3] = __fdiv_ru(x[i], 3.f);
  out[4] = __double2float_rd(d[i]);
  out[5] = __double2float_ru(d[i]);
  out[6] = __int2float_rz(16777217 + i);
  out[7] = static_cast<float>(__float2int_ru(x[i] * 10));
}

__global__ void doubles(const double* x, double* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  double values[8];  // indexed by data: local memory
  if (i >= n) return;
  for (int k = 0; k < 8; ++k) values[k] = exp(x[i] * k / 8);
  double sum = 0;
  for (int k = 0; k < 8; ++k) sum = fma(values[(k * 5 + i) & 7], sqrt(1.0 + k), sum);
  y[i] = sum + exp(x[i]) / (1 + x[i] * x[i]);
}

// NaNs of every payload become one.
__global__ void of_nan(unsigned* y) {
  const float nan = __uint_as_float(~0u - threadIdx.x);
  y[threadIdx.x] = __float_as_uint(threadIdx.x & 1 ? nan + 1 : fmaf(nan, 2, nan));
}

int main() {
  const int n = 500;
  auto x = uniforms(n, 2);
  Array<float> dx(x), dy(n * functions);
  apply_functions<<<4, 128>>>(dx, dy, n);
  const auto y = dy.host();
  {
    Comparison compare{"fp32 functions", 1e-5};
    for (int i = 0; i < n * functions; ++i) compare(y[i], expected(i % functions, x[i / functions]));
  }
  std::vector<double> d(n);
  for (double& v : d) v = 5.1 * uniform();
  Array<double> dd(d), out(n);
  doubles<<<5, 100>>>(dd, out, n);
  const auto got = out.host();
  {
    Comparison compare{"fp64", 1e-13};
    for (int i = 0; i < n; ++i) {
      double sum = std::exp(d[i]) / (1 + d[i] * d[i]);
      for (int k = 0; k < 8; ++k) sum += std::exp(d[i] * ((k * 5 + i) & 7) / 8) * std::sqrt(1.0 + k);
      compare(got[i], sum);
    }
  }
  Array<unsigned> nans(64);
  of_nan<<<1, 64>>>(nans);
  {
    Comparison compare{"NaN", 0};
    for (const unsigned bits : nans.host()) compare(bits, 0x7fff'ffff);
  }
  Array<float> rounded(64 * roundings);
  round_both_ways<<<1, 64>>>(dx, dd, rounded);
  const auto r = rounded.host();
  Comparison compare{"roundings", 0};
  for (int i = 0; i < 64; ++i) {
    const float* v = &r[i * roundings];
    const double sum = static_cast<double>(x[i]) + 1e-9f, product = static_cast<double>(x[i]) * 1.1f;
    compare(v[0] <= sum && std::nextafter(v[0], INFINITY) > sum, 1);
    compare(v[1] >= sum && std::nextafter(v[1], -INFINITY) < sum, 1);
    compare(std::fabs(v[2]) <= std::fabs(product) && std::nextafter(std::fabs(v[2]), INFINITY) > std::fabs(product), 1);
    compare(v[3] * 3. >= x[i] && std::nextafter(v[3], -INFINITY) * 3. < x[i], 1);
    compare(v[4] <= d[i] && std::nextafter(v[4], INFINITY) > d[i], 1);
    compare(v[5] >= d[i] && std::nextafter(v[5], -INFINITY) < d[i], 1);
    compare(v[6], (16777217 + i) & ~1);
    compare(v[7], std::ceil(x[i] * 10));
  }
}
