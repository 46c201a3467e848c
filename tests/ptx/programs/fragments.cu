// One warp's cp.async, ldmatrix and mma.sync: C[16, 8] = A[16, K] B[K, 8], for f16, bf16 and tf32.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "check.h"

__device__ unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

__device__ void copy16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

template <class H>
__device__ void multiply(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#define MMA(type)                                                           \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type       \
               ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same_v<H, half>) MMA("f16");
  else MMA("bf16");
}

template <class H>
__global__ void halves(const H* A,  // [16, K]
                       const H* B,  // [8, K]
                       float* C,    // [16, 8]
                       int K) {
  __shared__ __align__(16) H sa[16 * 16], sb[8 * 16];
  const int l = threadIdx.x;
  float c[4] = {};
  for (int k = 0; k < K; k += 16) {
    copy16(sa + l * 8, A + l / 2 * K + k + l % 2 * 8);
    if (l < 16) copy16(sb + l * 8, B + l / 2 * K + k + l % 2 * 8);
    asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
    __syncwarp();
    unsigned a[4], b[2];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(shared_address(sa + l % 16 * 16 + l / 16 * 8))
                 : "memory");
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(b[0]), "=r"(b[1])
                 : "r"(shared_address(sb + l % 8 * 16 + l / 8 % 2 * 8))
                 : "memory");
    multiply<H>(c, a, b);
    __syncwarp();
  }
  for (int i = 0; i < 4; ++i) C[(l / 4 + 8 * (i / 2)) * 8 + l % 4 * 2 + i % 2] = c[i];
}

__global__ void tf32(const float* A,  // [16, 8]
                     const float* B,  // [8, 8], B[n, k]
                     float* C) {      // [16, 8]
  const int quad = threadIdx.x / 4, t = threadIdx.x % 4;
  unsigned a[4], b[2];
  const auto rounded = [](float x) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
  };
  for (int r = 0; r < 4; ++r) a[r] = rounded(A[(quad + 8 * (r % 2)) * 8 + t + 4 * (r / 2)]);
  for (int r = 0; r < 2; ++r) b[r] = rounded(B[quad * 8 + t + 4 * r]);
  float c[4] = {};
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  for (int i = 0; i < 4; ++i) C[(quad + 8 * (i / 2)) * 8 + 2 * t + i % 2] = c[i];
}

template <class T>
void compare_product(const char* name, double tolerance, const std::vector<T>& A, const std::vector<T>& B,
                     const std::vector<float>& C, int K) {
  Comparison compare{name, tolerance};
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      double sum = 0;
      for (int k = 0; k < K; ++k) sum += static_cast<double>(float(A[i * K + k])) * float(B[j * K + k]);
      compare(C[i * 8 + j], sum);
    }
}

template <class H>
void check_halves(const char* name) {
  const int K = 64;
  const auto A = uniforms<H>(16 * K), B = uniforms<H>(8 * K);
  Array<H> a(A), b(B);
  Array<float> c(16 * 8);
  halves<H><<<1, 32>>>(a, b, c, K);
  compare_product(name, 1e-5, A, B, c.host(), K);
}

int main() {
  check_halves<half>("mma f16");
  check_halves<__nv_bfloat16>("mma bf16");
  const auto A = uniforms(16 * 8), B = uniforms(8 * 8);
  Array<float> a(A), b(B), c(16 * 8);
  tf32<<<1, 32>>>(a, b, c);
  compare_product("mma tf32", 5e-3, A, B, c.host(), 8);
}
