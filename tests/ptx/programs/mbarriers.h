// mbarrier instructions, as functions.
#pragma once

__device__ inline unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

using Mbarrier = unsigned long long;

__device__ inline void init(Mbarrier* m, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(m)), "r"(arrivals) : "memory");
}

__device__ inline void inval(Mbarrier* m) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(m)) : "memory");
}

// The phase that the arrival is in.
__device__ inline Mbarrier arrive(Mbarrier* m, unsigned count = 1) {
  Mbarrier phase;
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 %0, [%1], %2;"
               : "=l"(phase)
               : "r"(shared_address(m)), "r"(count)
               : "memory");
  return phase;
}

// At the mbarrier of another block of the cluster.
__device__ inline void arrive_at(Mbarrier* m, unsigned rank) {
  asm volatile(
      "{ .reg .b32 a; mapa.shared::cluster.u32 a, %0, %1; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [a]; "
      "}" ::"r"(shared_address(m)),
      "r"(rank)
      : "memory");
}

__device__ inline bool passed(Mbarrier* m, Mbarrier phase) {
  unsigned yes;
  asm volatile("{ .reg .pred p; mbarrier.test_wait.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(yes)
               : "r"(shared_address(m)), "l"(phase)
               : "memory");
  return yes;
}

__device__ inline void wait(Mbarrier* m, unsigned parity) {
  for (unsigned yes = 0; !yes;)
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(yes)
        : "r"(shared_address(m)), "r"(parity)
        : "memory");
}
