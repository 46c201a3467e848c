// A block's GEMM: two stages of cp.async, ldmatrix with and without .trans, mma.sync in four warps.
#include <cuda_fp16.h>

#include "check.h"

__device__ unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

__device__ void copy16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

__global__ void __launch_bounds__(128) gemm(const half* A,  // [M, K]
                                            const half* B,  // [K, N]
                                            float* C,       // [M, N]
                                            int N, int K) {
  __shared__ __align__(16) half sa[2][32][24], sb[2][16][40];  // rows padded against bank conflicts
  const int t = threadIdx.x, warp = t / 32, l = t % 32;
  const int row = blockIdx.y * 32, column = blockIdx.x * 32;
  float c[2][4] = {};
  const auto fetch = [&](int stage, int k) {
    if (t < 64) {
      copy16(&sa[stage][t / 2][t % 2 * 8], A + (row + t / 2) * K + k + t % 2 * 8);
    } else {
      const int u = t - 64;
      copy16(&sb[stage][u / 4][u % 4 * 8], B + (k + u / 4) * N + column + u % 4 * 8);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  fetch(0, 0);
  for (int k = 0, stage = 0; k < K; k += 16, stage ^= 1) {
    if (k + 16 < K) {
      fetch(stage ^ 1, k + 16);
      asm volatile("cp.async.wait_group 1;" ::: "memory");
    } else {
      asm volatile("cp.async.wait_group 0;" ::: "memory");
    }
    __syncthreads();
    unsigned a[4];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(shared_address(&sa[stage][warp / 2 * 16 + l % 16][l / 16 * 8]))
                 : "memory");
    for (int j = 0; j < 2; ++j) {
      unsigned b[2];
      asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                   : "=r"(b[0]), "=r"(b[1])
                   : "r"(shared_address(&sb[stage][l % 16][warp % 2 * 16 + j * 8]))
                   : "memory");
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
    __syncthreads();
  }
  for (int j = 0; j < 2; ++j)
    for (int i = 0; i < 4; ++i)
      C[(row + warp / 2 * 16 + l / 4 + 8 * (i / 2)) * N + column + warp % 2 * 16 + j * 8 + l % 4 * 2 + i % 2] = c[j][i];
}

int main() {
  const int M = 64, N = 64, K = 80;
  const auto A = uniforms<half>(M * K), B = uniforms<half>(K * N);
  Array<half> a(A), b(B);
  Array<float> c(M * N);
  gemm<<<dim3(N / 32, M / 32), 128>>>(a, b, c, N, K);
  const auto C = c.host();
  Comparison compare{"pipelined gemm", 1e-5};
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) {
      double sum = 0;
      for (int k = 0; k < K; ++k) sum += static_cast<double>(__half2float(A[i * K + k])) * __half2float(B[k * N + j]);
      compare(C[i * N + j], sum);
    }
}
