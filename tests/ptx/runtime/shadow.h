// Who last wrote and who has read each byte, to find data races: two accesses of different threads to a byte, at least
// one of them a write and not both strong for both, of which neither happened before the other.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "access.h"
#include "order.h"

namespace ptx {

struct Access {
  u32 epoch = 0;  // of the block; 0: there was no access
  u32 block = 0;
  u32 site : 31 = 0;
  u32 near : 1 = 0;  // if it is strong, then for its block alone
  u32 thread : 10 = 0;
  u32 strong : 1 = 0;
  u32 pending : 1 = 0;  // a copy that cp.async has begun
  u32 several : 1 = 0;  // reads by more lanes of the thread's warp, too,
  u32 many : 1 = 0;     // and by more warps of the block
  u32 waits : 1 = 0;  // the cluster's barrier is open, and the thread has not yet waited for it
  u32 warp_epoch : 17 = 0;
};

struct Cell {
  Access write, read;
  std::unique_ptr<std::vector<Access>> reads_by_others;  // of other blocks than `read`
};

// The cells of one address space, by host address.
struct Shadow {
  Cell& at(u64 address);
  void for_each(const std::function<void(u64 address, const Cell& cell)>& visit) const;

 private:
  static constexpr u64 page = 1024;
  using Page = std::array<Cell, page>;
  std::unordered_map<u64, std::unique_ptr<Page>> pages_;
  u64 last_number_ = ~u64{0};
  Page* last_ = nullptr;
};

enum class Does : u8 { read, read_constant, write, begin_copy, end_copy };

// Records an access, after a fault if it races with an earlier one.
void check_race(Shadow& shadow, Warp& w, int lane, const Site& site, u64 address, u32 bytes, Does does, Order order);

// With a block goes its shared memory: a fault if an access by another block has not happened before.
void check_end(const Shadow& shared, const Block& block);

}  // namespace ptx
