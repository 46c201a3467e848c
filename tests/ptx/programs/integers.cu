// Integers of 32 and 64 bits, bits, division, a switch, addresses in a block of three dimensions.
#include "check.h"

constexpr int results = 14;

__host__ __device__ inline int chosen(int v, int i) {
  switch (i % 9) {
    case 0: return 5;
    case 1: return static_cast<int>(v * 3u);
    case 2: return v ^ 77;
    case 3: return static_cast<int>(v - 1u);
    case 4: return v >> 3;
    case 5: return ~v;
    case 6: return static_cast<int>(static_cast<unsigned>(v) * v);
    default: return static_cast<int>(0u - v);
  }
}

__host__ __device__ inline int divisor(int i) { return i % 7 - 3 ? i % 7 - 3 : 5; }

__global__ void integers(const int* x, int* y, int n) {
  const int i = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  if (i >= n) return;
  const int v = x[i];
  int* out = y + i * results;
  out[0] = __clz(v);
  out[1] = __ffs(v);
  out[2] = __brev(v);
  out[3] = __byte_perm(v, ~v, 0x5140);
  out[4] = __funnelshift_l(v, v * 3u, i & 31);
  out[5] = v / divisor(i);
  out[6] = v % (i + 1);
  out[7] = __mulhi(v, v + 1);
  out[8] = static_cast<int>(static_cast<long long>(v) * v / (i + 1));
  out[9] = __dp4a(v, v + 1, v);
  out[10] = __sad(v, i, 3);
  out[11] = chosen(v, i);
  out[12] = __popcll(static_cast<unsigned long long>(v) * 0x9e3779b97f4a7c15ull);
  out[13] = static_cast<int>(__umul64hi(static_cast<unsigned long long>(v) << 20, 0x9e3779b97f4a7c15ull));
}

int byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long both = static_cast<unsigned long long>(b) << 32 | a;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) out |= static_cast<unsigned>(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return static_cast<int>(out);
}

int reversed(unsigned v) {
  unsigned out = 0;
  for (int k = 0; k < 32; ++k) out |= (v >> k & 1) << (31 - k);
  return static_cast<int>(out);
}

int expected(int k, int v, int i) {
  const unsigned u = static_cast<unsigned>(v), high = u * 3, s = i & 31;
  const long long wide = v, distance = wide - i;
  const auto golden = 0x9e3779b97f4a7c15ull;
  int dot = v;
  for (int b = 0; b < 4; ++b) dot += static_cast<signed char>(u >> 8 * b) * static_cast<signed char>((u + 1) >> 8 * b);
  switch (k) {
    case 0: return v ? __builtin_clz(u) : 32;
    case 1: return __builtin_ffs(v);
    case 2: return reversed(u);
    case 3: return byte_perm(u, ~u, 0x5140);
    case 4: return static_cast<int>(s ? high << s | u >> (32 - s) : high);
    case 5: return v / divisor(i);
    case 6: return v % (i + 1);
    case 7: return static_cast<int>(wide * (wide + 1) >> 32);
    case 8: return static_cast<int>(wide * v / (i + 1));
    case 9: return dot;
    case 10: return static_cast<int>((distance < 0 ? -distance : distance) + 3);
    case 11: return chosen(v, i);
    case 12: return __builtin_popcountll(static_cast<unsigned long long>(v) * golden);
    default: {
      const auto product = static_cast<unsigned __int128>(static_cast<unsigned long long>(v) << 20) * golden;
      return static_cast<int>(static_cast<unsigned long long>(product >> 64));
    }
  }
}

int main() {
  const int n = 384;
  std::vector<int> x(n);
  for (int& v : x) v = static_cast<int>(random_bits()());
  x[0] = 0, x[1] = -1;
  Array<int> dx(x), dy(n * results);
  integers<<<1, dim3(8, 8, 6)>>>(dx, dy, n);
  const auto y = dy.host();
  Comparison compare{"integers", 0};
  for (int i = 0; i < n * results; ++i) compare(y[i], expected(i % results, x[i / results], i / results));
}
