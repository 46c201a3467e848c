// Elements of device memory as numbers to compute with, and back. What another block may have written since this kernel
// began is read past L1, which is not kept coherent between multiprocessors.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../recurrence.h"

namespace lstm_fused::cuda {

__device__ inline float to_compute(float x) { return x; }
__device__ inline double to_compute(double x) { return x; }
__device__ inline float to_compute(BFloat16 x) { return __bfloat162float(__ushort_as_bfloat16(x.bits)); }
__device__ inline float to_compute(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <class Storage>
__device__ compute_t<Storage> load(const Storage* p) {
  return to_compute(*p);
}

__device__ inline float load_fresh(const float* p) { return __ldcg(p); }
__device__ inline double load_fresh(const double* p) { return __ldcg(p); }
__device__ inline float load_fresh(const BFloat16* p) {
  return to_compute(BFloat16{__ldcg(reinterpret_cast<const unsigned short*>(p))});
}
__device__ inline float load_fresh(const Float16* p) {
  return to_compute(Float16{__ldcg(reinterpret_cast<const unsigned short*>(p))});
}

__device__ inline void store(float* p, float x) { *p = x; }
__device__ inline void store(double* p, double x) { *p = x; }
__device__ inline void store(BFloat16* p, float x) { p->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
__device__ inline void store(Float16* p, float x) { p->bits = __half_as_ushort(__float2half_rn(x)); }

}  // namespace lstm_fused::cuda
