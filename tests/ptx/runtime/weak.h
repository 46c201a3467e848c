// Stores that other blocks do not see yet. A device may delay a store to global memory until a fence of the thread, or
// of one that is after it in the block; here every store is delayed until then, so that a missing fence shows as an old
// value. Strong stores are delayed for a round of the blocks, in which each has its turn, or until the next store to
// the same place: what is awaited by another word, or is not the last word there, shows as an old value, too. Atomics
// are seen at once, and so pass earlier stores.
#pragma once

#include <unordered_map>
#include <vector>

#include "warp.h"

namespace ptx {

struct StoreBuffer {
  struct Byte {
    u8 value;
    bool strong;
    u32 thread, epoch;
  };
  std::unordered_map<u64, Byte> bytes;
  std::vector<u64> strong, earlier;  // addresses of strong stores of this round, and of the last one

  void store(u64 address, const void* value, u32 count, u32 thread, u32 epoch, bool is_strong);
  void overlay(u64 address, void* value, u32 count) const;  // what the block itself sees
  void flush(u64 address, u32 count);  // these bytes
  void drop(u64 address, u32 count);
  void fence(u32 thread, u32 epoch);  // all stores of the thread, and those from before the block's last barrier
  void end_round();
  void flush_all();
};

}  // namespace ptx
