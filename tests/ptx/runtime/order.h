// Which accesses of other threads have happened before one: through block barriers, and through a fence, a strong
// write, a strong read that comes after it, and a fence (PTX's release and acquire patterns; strong is atomic,
// volatile, relaxed, acquire or release).
//
// Where this is not exact, it errs towards order, so that no sound kernel is blamed:
//   - a barrier for a part of the block orders all of the block, __syncwarp of some lanes all of the warp;
//   - a fence covers all that its thread did since the last block barrier, also what came after the fence;
//   - a fence of one thread counts for strong writes of others of its block after a block barrier;
//   - a strong read sees all releases at its address, not only the one whose value it got;
//   - an arrival at an mbarrier releases all that its block did before, and mbarriers know no scope;
//   - a fence, release or acquire for the cluster is one for the device;
//   - the cluster's barrier orders all threads of a block even if they arrive relaxed, and its other blocks' threads
//     with all of a block if one of that block's threads arrives with release.
#pragma once

#include <unordered_map>

#include "access.h"

namespace ptx {

constexpr u32 most_threads = 1024;  // of a block

struct Knowledge {
  std::unordered_map<u32, u32> below;  // block -> all its accesses of earlier epochs are known
  std::unordered_map<u64, u32> upto;   // block and thread -> the thread's accesses up to this epoch are known

  void join(const Knowledge& other);
  void drop_implied();  // threads about whose block as much is known
  bool holds(u32 block, u32 thread, u32 epoch) const { return all_of(block, epoch) || one_of(block, thread, epoch); }
  bool all_of(u32 block, u32 epoch) const;
  bool one_of(u32 block, u32 thread, u32 epoch) const;
};

// By scope of the fence: block, device.
struct Ordering {
  Knowledge known;        // happened before
  Knowledge observed[2];  // will have, after a fence
  Knowledge fenced[2];    // what the next strong write releases

  void join(const Ordering& other);
};

struct Release {
  u64 version = 0;
  Knowledge device;
  std::unordered_map<u32, Knowledge> within;  // a block, by fences for that block alone
};

struct OrderOfThread : Ordering {
  std::unordered_map<u64, u64> seen;  // address -> version of the release there
};

// Of the cluster's barrier or an mbarrier: what those know that have arrived in the present phase, and what a wait
// for the last one acquires.
struct OrderOfPhase {
  Knowledge arriving, completed;
};

struct OrderOfBlock : Ordering {
  std::unordered_map<u32, OrderOfThread> threads;  // since the last block barrier
  std::unordered_map<u64, Release> shared_releases;

  void fence(const Block& b, u32 thread, Scope scope);
  void acquire(u32 thread, Scope scope);
  void release(const Block& b, u32 thread, Scope scope);
  void observe(const Block& b, u32 thread, u64 address, std::unordered_map<u64, Release>& releases);
  void publish(const Block& b, u32 thread, u64 address, std::unordered_map<u64, Release>& releases);
  void barrier();                               // all threads know what each one knew
  void sync_warp(u32 first_thread, u32 mask);  // so do these
  void arrive(const Block& b, u32 first_thread, u32 mask, bool releases, Knowledge& arriving);
  void join(u32 first_thread, u32 mask, const Knowledge& other);
  using Ordering::join;
  bool knows(u32 thread, u32 other_block, u32 other_thread, u32 epoch) const;
  bool knows_all_of(u32 thread, u32 other_block, u32 epoch) const;
};

}  // namespace ptx
