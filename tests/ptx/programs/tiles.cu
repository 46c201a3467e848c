// wmma: halves, bf16 and tf32, tiles of A in shared memory, of B in global memory by rows and by columns.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

#include "check.h"

using namespace nvcuda;

template <class T, class Sum, class LayoutB, int depth>
__global__ void product(const T* A, const T* B, Sum* C, int K, int N, int lda, int ldb) {
  using Element = std::conditional_t<depth == 8, wmma::precision::tf32, T>;
  __shared__ __align__(32) T tile[16 * depth];
  wmma::fragment<wmma::matrix_a, 16, 16, depth, Element, wmma::row_major> a;
  wmma::fragment<wmma::matrix_b, 16, 16, depth, Element, LayoutB> b;
  wmma::fragment<wmma::accumulator, 16, 16, depth, Sum> c;
  wmma::fill_fragment(c, static_cast<Sum>(0.f));
  const int row = blockIdx.y * 16, column = blockIdx.x * 16;
  for (int k = 0; k < K; k += depth) {
    for (int i = threadIdx.x; i < 16 * depth; i += 32) tile[i] = A[(row + i / depth) * lda + k + i % depth];
    __syncwarp();
    wmma::load_matrix_sync(a, tile, depth);
    constexpr bool by_row = std::is_same_v<LayoutB, wmma::row_major>;
    wmma::load_matrix_sync(b, by_row ? B + k * ldb + column : B + column * ldb + k, ldb);
    wmma::mma_sync(c, a, b, c);
    __syncwarp();
  }
  for (int i = 0; i < c.num_elements; ++i) c.x[i] = c.x[i] + c.x[i];
  wmma::store_matrix_sync(C + row * N + column, c, N, wmma::mem_row_major);
}

template <class T, class Sum, class LayoutB, int depth>
void check_product(const char* name, double tolerance) {
  const int M = 32, N = 32, K = 48;
  const bool by_row = std::is_same_v<LayoutB, wmma::row_major>;
  const auto A = uniforms<T>(M * K), B = uniforms<T>(K * N);
  Array<T> a(A), b(B);
  Array<Sum> c(M * N);
  product<T, Sum, LayoutB, depth><<<dim3(2, 2), 32>>>(a, b, c, K, N, K, by_row ? N : K);
  const auto C = c.host();
  Comparison compare{name, tolerance};
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) {
      double sum = 0;
      for (int k = 0; k < K; ++k)
        sum += static_cast<double>(float(A[i * K + k])) * float(by_row ? B[k * N + j] : B[j * K + k]);
      compare(static_cast<double>(float(C[i * N + j])), 2 * sum);
    }
}

int main() {
  check_product<half, float, wmma::col_major, 16>("wmma f16, sums in f32", 1e-5);
  check_product<half, half, wmma::row_major, 16>("wmma f16, sums in f16", 1e-2);
  check_product<__nv_bfloat16, float, wmma::row_major, 16>("wmma bf16", 1e-5);
  check_product<float, float, wmma::col_major, 8>("wmma tf32", 1e-2);
}
