// Block barriers, and the rules for threads that use them.
#include <cstring>

#include "fault.h"
#include "watch.h"

namespace ptx {

namespace {

// An aligned barrier is one instruction that all threads of a warp execute together; __syncthreads is one.
bool is_aligned(const Site& site) {
  return !std::strstr(site.text, "barrier") || std::strstr(site.text, ".aligned") != nullptr;
}

u32 lanes_of(const Warp& w) {
  const u32 threads = w.block->threads - w.id * lanes;
  return threads >= lanes ? full_warp : (1u << threads) - 1;
}

[[noreturn]] void divergent(const Warp& w, int lane, const Block& b, u32 other, const Site& other_site) {
  fault(w, lane, *w.barrier_site[lane], Kind::launch, "divergent block barrier",
        "not the instruction at which waits " + whereabouts(*b.grid, b.index, other, other_site));
}

// All threads of a warp must be at the same instruction; at a barrier for the whole block, all threads of the block.
void check_divergence(const Block& b, u32 id) {
  const Barrier& barrier = b.barriers[id];
  for (const Warp& w : b.warps) {
    const u32 here = lanes_at(w, id);
    if (!here) continue;
    const int first = first_lane(here);
    if (!is_aligned(*w.barrier_site[first])) continue;
    for (int l = 0; l < lanes; ++l)
      if (holds(here, l) && w.barrier_site[l] != w.barrier_site[first])
        divergent(w, l, b, w.id * lanes + static_cast<u32>(first), *w.barrier_site[first]);
    if (here != lanes_of(w))
      fault(w, first, *w.barrier_site[first], Kind::launch,
            here == w.live ? "block barrier after some threads of the warp have exited"
                           : "block barrier that not all threads of the warp take part in");
    if (!barrier.expected && barrier.site && w.barrier_site[first] != barrier.site)
      divergent(w, first, b, barrier.first, *barrier.site);
  }
}

// Two epochs where lanes are between their arrival at the cluster's barrier and the wait: their last accesses count as
// of the epoch after the present one, and this barrier comes after them, too.
u32 epochs_of_barrier(const Block& b) {
  for (const Warp& w : b.warps)
    if (w.arrived | w.open) return 2;
  return 1;
}

void release_if_complete(Block& b, u32 id) {
  Barrier& barrier = b.barriers[id];
  if (!barrier.arrived || barrier.arrived < (barrier.expected ? barrier.expected : b.live)) return;
  check_divergence(b, id);
  for (Warp& w : b.warps) w.waiting &= ~lanes_at(w, id);
  b.ordered = b.epoch += epochs_of_barrier(b);
  barrier = {.arrived = 0,
             .expected = 0,
             .counted = 0,
             .result = barrier.counted,
             .members = barrier.arrived,
             .site = nullptr,
             .first = 0};
  if (watching) watch_barrier(b);
}

}  // namespace

void arrive(Warp& w, u32 mask, u32 id, u32 expected, bool waits, const Site& site) {
  if (id >= 16) fault(w, first_lane(mask), site, Kind::launch, "no such barrier");
  Block& b = *w.block;
  Barrier& barrier = b.barriers[id];
  if (expected) barrier.expected = expected;
  if (!barrier.arrived && waits) {
    barrier.site = &site;
    barrier.first = w.id * lanes + static_cast<u32>(first_lane(mask));
  }
  barrier.arrived += static_cast<u32>(count(mask));
  for (int l = 0; waits && l < lanes; ++l)
    if (holds(mask, l)) {
      w.barrier[l] = static_cast<u8>(id);
      w.barrier_site[l] = &site;
    }
  if (waits) w.waiting |= mask;
  release_if_complete(b, id);
}

void leave(Warp& w, u32 mask) {
  w.live &= ~mask;
  w.block->live -= static_cast<u32>(count(mask));
  for (u32 id = 0; id < 16; ++id) release_if_complete(*w.block, id);
  open_if_all_arrived(*w.block->cluster);
}

}  // namespace ptx
