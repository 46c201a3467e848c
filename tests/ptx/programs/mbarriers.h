// mbarrier and bulk copy instructions, as functions.
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

// An arrival of a phase that also waits for so many bytes of copies.
__device__ inline void arrive_and_expect(Mbarrier* m, unsigned bytes) {
  asm volatile("{ .reg .b64 t; mbarrier.arrive.expect_tx.shared::cta.b64 t, [%0], %1; }" ::"r"(shared_address(m)),
               "r"(bytes)
               : "memory");
}

__device__ inline void copy_in(void* to, const void* from, unsigned bytes, Mbarrier* m) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(m))
               : "memory");
}

// To where `to` and `m` are in another block of the cluster.
__device__ inline void copy_across(void* to, const void* from, unsigned bytes, Mbarrier* m, unsigned rank) {
  asm volatile("{ .reg .b32 a, b; mapa.shared::cluster.u32 a, %0, %4; mapa.shared::cluster.u32 b, %3, %4; "
               "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [a], [%1], %2, [b]; }" ::"r"(
                   shared_address(to)),
               "r"(shared_address(from)), "r"(bytes), "r"(shared_address(m)), "r"(rank)
               : "memory");
}

__device__ inline void copy_out(void* to, const void* from, unsigned bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\ncp.async.bulk.commit_group;" ::"l"(
                   __cvta_generic_to_global(to)),
               "r"(shared_address(from)), "r"(bytes)
               : "memory");
}

template <int groups_left>
__device__ inline void wait_for_sources() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(groups_left) : "memory");
}

// Before a copy reads what threads have written.
__device__ inline void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
