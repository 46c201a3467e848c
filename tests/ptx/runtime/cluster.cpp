// Clusters of blocks: addresses of each other's shared memory, and their barrier.
#include <algorithm>

#include "access.h"
#include "watch.h"

namespace ptx {

namespace {

constexpr u64 offset_mask = (u64{1} << rank_shift) - 1;

const Block& block_of_rank(const Warp& w, int lane, const Site& site, u64 rank) {
  const auto& blocks = w.block->cluster->blocks;
  if (rank >= blocks.size())
    fault(w, lane, site, Kind::address,
          "no block of rank " + std::to_string(rank) + " in a cluster of " + std::to_string(blocks.size()));
  return *blocks[rank];
}

// The address in cluster space that a generic one stands for.
u64 shared_address(const Warp& w, int lane, const Site& site, u64 address, bool generic) {
  if (!generic) return address;
  if (!is_in_cluster(w, address))
    fault_at_address(w, lane, site, Kind::address, "not an address of shared memory", address);
  return generic_to_cluster(w, address);
}

}  // namespace

Spot locate_in_cluster(const Warp& w, int lane, const Site& site, u64 address, u64 bytes) {
  if ((bytes & (bytes - 1)) == 0 && (address & (bytes - 1)))
    fault_at_address(w, lane, site, Kind::alignment, "misaligned access", address);
  const u64 window = address & 0xffffffff, tag = window >> rank_shift, offset = window & offset_mask;
  const Block& of = tag ? block_of_rank(w, lane, site, tag - 1) : *w.block;
  if (&of != w.block && of.ended)
    fault_at_address(w, lane, site, Kind::address, "access to the shared memory of a block that has exited", window);
  if (offset + bytes > of.shared_bytes)
    fault_at_address(w, lane, site, Kind::address, "shared access out of bounds", window);
  return {of.shared + offset, &of == w.block ? Space::shared : Space::cluster};
}

Spot locate_elsewhere(const Warp& w, int lane, const Site& site, Space named, u64 address, u64 bytes) {
  if (named != Space::generic || !in_cluster_window(address))
    fault_at_address(w, lane, site, Kind::address, "global access out of bounds", address);
  return locate_in_cluster(w, lane, site, address, bytes);
}

Block& other_holder(const Warp& w, Spot spot) {
  const auto holds_it = [&](const Block* b) { return static_cast<u64>(spot.at - b->shared) < b->shared_bytes; };
  const auto& blocks = w.block->cluster->blocks;
  return **std::find_if(blocks.begin(), blocks.end(), holds_it);
}

u64 map_to_rank(const Warp& w, int lane, const Site& site, u64 address, u32 rank, bool generic) {
  block_of_rank(w, lane, site, rank);
  const u64 offset = shared_address(w, lane, site, address, generic) & offset_mask;
  return (u64{rank + 1} << rank_shift) + offset + (generic ? cluster_window : 0);
}

u32 rank_at(const Warp& w, int lane, const Site& site, u64 address, bool generic) {
  const u64 tag = shared_address(w, lane, site, address, generic) >> rank_shift;
  return tag ? static_cast<u32>(tag - 1) : w.block->rank;
}

u64 cluster_to_generic(const Warp& w, u64 address) {
  return address >> rank_shift ? cluster_window + address : reinterpret_cast<u64>(w.block->shared) + address;
}

u64 generic_to_cluster(const Warp& w, u64 address) {
  return address - (in_cluster_window(address) ? cluster_window : reinterpret_cast<u64>(w.block->shared));
}

void arrive_at_cluster(Warp& w, u32 mask, bool releases, const Site& site) {
  if (const u32 again = mask & (w.arrived | w.open))
    fault(w, first_lane(again), site, Kind::launch, "second arrival at the cluster barrier without a wait between");
  if (watching) watch_cluster_arrive(w, mask, releases);
  w.arrived |= mask;
  w.block->cluster->arriving = true;
  open_if_all_arrived(*w.block->cluster);
}

void wait_for_cluster(Warp& w, u32 mask, const Site& site) {
  if (const u32 absent = mask & ~(w.arrived | w.open))
    fault(w, first_lane(absent), site, Kind::launch, "wait at the cluster barrier without an arrival");
  const u32 blocked = mask & w.arrived, passes = mask & w.open;
  for (int l = 0; l < lanes; ++l)
    if (holds(blocked, l)) {
      w.barrier[l] = cluster_barrier;
      w.barrier_site[l] = &site;
    }
  w.waiting |= blocked;
  w.open &= ~passes;
  if (watching) watch_cluster_wait(w, passes);
}

// Threads that have exited are not waited for.
void open_if_all_arrived(Cluster& cluster) {
  if (!cluster.arriving) return;
  for (const Block* b : cluster.blocks)
    for (const Warp& w : b->warps)
      if (w.live & ~w.arrived) return;
  cluster.arriving = false;
  if (watching) watch_cluster_open(cluster);
  for (Block* b : cluster.blocks) {
    b->ordered = ++b->epoch;
    for (Warp& w : b->warps) {
      const u32 passes = lanes_at(w, cluster_barrier);
      w.open = w.live & w.arrived & ~passes;
      w.arrived = 0;
      w.waiting &= ~passes;
      if (watching) watch_cluster_wait(w, passes);
    }
  }
}

}  // namespace ptx
