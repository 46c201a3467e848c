// Stores that other blocks do not see yet. A device may delay a store to global memory until a fence of the thread, or
// of one that is after it in the block; here every store is delayed until then, so that a missing fence shows as an old
// value. Strong stores and atomics are seen at once, and so pass earlier weak ones.
#pragma once

#include <unordered_map>

#include "warp.h"

namespace ptx {

struct StoreBuffer {
  struct Byte {
    u8 value;
    u32 thread, epoch;
  };
  std::unordered_map<u64, Byte> bytes;

  void store(u64 address, const void* value, u32 count, u32 thread, u32 epoch);
  void overlay(u64 address, void* value, u32 count) const;  // what the block itself sees
  void flush(u64 address, u32 count);  // these bytes
  void drop(u64 address, u32 count);
  void fence(u32 thread, u32 epoch);  // all stores of the thread, and those from before the block's last barrier
  void flush_all();
};

}  // namespace ptx
