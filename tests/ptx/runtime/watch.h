// What the checks that can be switched on are told about a launch; access.h has the rest.
#pragma once

#include "access.h"

namespace ptx {

struct WatchLaunch {
  explicit WatchLaunch(const Grid& grid);
  ~WatchLaunch();
};
void watch_round_end();  // every block had its turn
void watch_block_start(Block& block);
void watch_block_end(Block& block);
void watch_barrier(Block& block);  // all threads of the block have met
void watch_cluster_arrive(Warp& w, u32 mask, bool releases);
void watch_cluster_open(Cluster& cluster);  // all its threads have arrived
void watch_cluster_wait(Warp& w, u32 mask);
void watch_mbarrier_set(Warp& w, int lane, const Site& site, Spot spot);  // by init and inval
void watch_mbarrier_arrive(Warp& w, int lane, const Site& site, Spot spot, Mbarrier& m, bool releases);
void watch_mbarrier_copied(Warp& w, int lane, Mbarrier& m);  // a bulk copy of this thread has completed
void watch_mbarrier_complete(Mbarrier& m);
void watch_mbarrier_test(Warp& w, int lane, const Site& site, Spot spot, const Mbarrier& m, bool acquires);

}  // namespace ptx
