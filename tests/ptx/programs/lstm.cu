// An LSTM forward in one cooperative launch: each block owns 16 hidden units, has its rows of U in shared memory, and
// multiplies with wmma; h goes through global memory, with one grid barrier a step.
//
// `lstm planted` has a block barrier in its place, which a check must notice.
#include <cooperative_groups.h>
#include <cuda_fp16.h>
#include <mma.h>

#include <cstring>

#include "check.h"

namespace cg = cooperative_groups;
using namespace nvcuda;

constexpr int units = 16, rows = 16;  // of a block; rows of the batch, padded

struct Problem {
  int T, B, H, padded;  // H padded to whole tiles
  const float* gates_x;  // [T, B, 4 * H]
  const half* U;         // [4 * H, H]
  half* h;               // [2, rows, padded], zeros at first
  float* output;         // [T, B, H]
  bool planted;
};

__device__ float sigmoid(float x) { return 1 / (1 + expf(-x)); }

__global__ void __launch_bounds__(128) forward(Problem p) {
  extern __shared__ __align__(32) unsigned char memory[];
  half* u = reinterpret_cast<half*>(memory);                        // [4, units, padded]
  float* sums = reinterpret_cast<float*>(u + 4 * units * p.padded);  // [4, rows, units]
  const int first = blockIdx.x * units, gate = threadIdx.x / 32;
  for (int e = threadIdx.x; e < 4 * units * p.padded; e += blockDim.x) {
    const int row = e / p.padded, k = e % p.padded, unit = first + row % units;
    const bool inside = unit < p.H && k < p.H;
    u[e] = inside ? p.U[(row / units * p.H + unit) * p.H + k] : __float2half(0.f);
  }
  float c[2] = {};
  __syncthreads();
  for (int t = 0; t < p.T; ++t) {
    const half* h0 = p.h + t % 2 * rows * p.padded;
    half* h1 = p.h + (t + 1) % 2 * rows * p.padded;
    wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> a;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::col_major> b;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
    wmma::fill_fragment(sum, 0.f);
    for (int k = 0; k < p.padded; k += 16) {
      wmma::load_matrix_sync(a, h0 + k, p.padded);
      wmma::load_matrix_sync(b, u + gate * units * p.padded + k, p.padded);
      wmma::mma_sync(sum, a, b, sum);
    }
    wmma::store_matrix_sync(sums + gate * rows * units, sum, units, wmma::mem_row_major);
    __syncthreads();
    for (int j = 0; j < 2; ++j) {
      const int e = threadIdx.x + j * 128, row = e / units, unit = first + e % units;
      if (row >= p.B || unit >= p.H) continue;
      float z[4];
      for (int g = 0; g < 4; ++g) z[g] = sums[g * rows * units + e] + p.gates_x[((t * p.B + row) * 4 + g) * p.H + unit];
      c[j] = sigmoid(z[1]) * c[j] + sigmoid(z[0]) * tanhf(z[2]);
      const float h = sigmoid(z[3]) * tanhf(c[j]);
      p.output[(t * p.B + row) * p.H + unit] = h;
      h1[row * p.padded + unit] = __float2half(h);
    }
    if (p.planted) __syncthreads();
    else cg::this_grid().sync();
  }
}

std::vector<double> expected(int T, int B, int H, const std::vector<float>& gates_x, const std::vector<half>& U) {
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  std::vector<double> h(B * H), c(B * H), output;
  for (int t = 0; t < T; ++t) {
    const auto h0 = h;
    for (int b = 0; b < B; ++b)
      for (int i = 0; i < H; ++i) {
        double z[4];
        for (int g = 0; g < 4; ++g) {
          z[g] = gates_x[((t * B + b) * 4 + g) * H + i];
          for (int k = 0; k < H; ++k) z[g] += h0[b * H + k] * __half2float(U[(g * H + i) * H + k]);
        }
        double& cell = c[b * H + i];
        cell = sigmoid(z[1]) * cell + sigmoid(z[0]) * std::tanh(z[2]);
        h[b * H + i] = sigmoid(z[3]) * std::tanh(cell);
      }
    output.insert(output.end(), h.begin(), h.end());
  }
  return output;
}

int main(int argc, char** argv) {
  const int T = 5, B = 3, H = 40, padded = 48;
  const auto gates_x = uniforms(T * B * 4 * H);
  const auto U = uniforms<half>(4 * H * H, .2f);
  Array<float> dx(gates_x), output(T * B * H);
  Array<half> du(U), dh(2 * rows * padded);
  dh.zero();
  Problem p{T, B, H, padded, dx, du, dh, output, argc > 1 && std::strcmp(argv[1], "planted") == 0};
  void* arguments[] = {&p};
  const std::size_t shared = 4 * units * padded * sizeof(half) + 4 * rows * units * sizeof(float);
  const auto kernel = reinterpret_cast<const void*>(forward);
  CHECK(cudaLaunchCooperativeKernel(kernel, dim3((H + units - 1) / units), dim3(128), arguments, shared, nullptr));
  const auto got = output.host();
  const auto right = expected(T, B, H, gates_x, U);
  Comparison compare{"lstm forward", 1e-3};
  for (std::size_t i = 0; i < got.size(); ++i) compare(got[i], right[i]);
}
