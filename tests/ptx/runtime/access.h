// Loads, stores and atomics of a lane: where an address points, whether it may, and who watches.
#pragma once

#include <map>
#include <mutex>
#include <vector>

#include "fault.h"
#include "warp.h"

namespace ptx {

// shared: the block's own, an offset. cluster: any block's of the cluster, as made by map_to_rank.
enum class Space : u8 { generic, global, shared, cluster, local, parameter };
// weak: an ordinary access; constant: ld.global.nc, for memory that nobody writes while the kernel runs; block: of any
// stronger order, for threads of the block alone (.cta).
enum class Order : u8 { weak, constant, block, relaxed, acquire, release, acq_rel };
enum class Scope : u8 { block, device };

constexpr bool is_strong(Order o) { return o >= Order::block; }
constexpr bool acquires(Order o) { return o == Order::acquire || o == Order::acq_rel; }
constexpr bool releases(Order o) { return o == Order::release || o == Order::acq_rel; }

// Memory of the device: what cudaMalloc gave, variables of modules, what a test has registered.
struct Allocation {
  u64 begin, size;
  std::vector<u8> written;  // a flag a byte; empty: all of it counts as written
};

class Allocations {
 public:
  Allocation* add(const void* begin, u64 size, bool track_writes);
  bool remove(const void* begin);
  Allocation* find(u64 address, u64 bytes);  // null where no allocation holds all of it
  void note_written(const void* begin, u64 bytes);

 private:
  std::map<u64, Allocation> all_;
  Allocation* last_ = nullptr;
};
Allocations& allocations();

// Held by launches and by calls of the CUDA runtime API that use allocations: the host may have several threads.
std::recursive_mutex& device_mutex();
using DeviceLock = std::scoped_lock<std::recursive_mutex>;

extern bool foreign_memory;  // addresses outside of all allocations are taken as they are

struct Spot {
  u8* at;
  Space space;  // global, shared, cluster (of another block), local or parameter
};

// An address in cluster space is an offset, with 1 + the rank of the block above it; without that it is the block's
// own. A generic one has the window above that, where the host has no memory.
constexpr int rank_shift = 24;
constexpr u64 cluster_window = 0x7c00'0000'0000'0000;
inline bool in_cluster_window(u64 address) { return address >> 32 == cluster_window >> 32; }

Spot locate_in_cluster(const Warp& w, int lane, const Site& site, u64 address, u64 bytes);
Block& other_holder(const Warp& w, Spot spot);

// Whose shared memory a spot is in.
inline Block& holder(const Warp& w, Spot spot) {
  return spot.space == Space::cluster ? other_holder(w, spot) : *w.block;
}

inline Space space_of(const Warp& w, u64 address) {
  const Block& b = *w.block;
  if (address - reinterpret_cast<u64>(b.shared) < b.shared_bytes) return Space::shared;
  if (address - reinterpret_cast<u64>(w.local) < u64{lanes} * b.grid->kernel->local_bytes) return Space::local;
  return Space::global;
}

// Where an address outside of all allocations points: to another block's shared memory if it is generic, or nowhere.
Spot locate_elsewhere(const Warp& w, int lane, const Site& site, Space named, u64 address, u64 bytes);

// Checks bounds and alignment. An address in shared or local space is an offset, all others are host addresses.
inline Spot locate(const Warp& w, int lane, const Site& site, Space space, u64 address, u64 bytes) {
  const Block& b = *w.block;
  if ((bytes & (bytes - 1)) == 0 && (address & (bytes - 1)))
    fault_at_address(w, lane, site, Kind::alignment, "misaligned access", address);
  const Space named = space;
  if (space == Space::generic) {
    space = space_of(w, address);
    if (space == Space::shared) address -= reinterpret_cast<u64>(b.shared);
    if (space == Space::local) return {reinterpret_cast<u8*>(address), space};
  }
  if (space == Space::shared) {
    if (address + bytes > b.shared_bytes)
      fault_at_address(w, lane, site, Kind::address, "shared access out of bounds", address);
    return {b.shared + address, space};
  }
  if (space == Space::local) {
    const u64 size = b.grid->kernel->local_bytes;
    if (address + bytes > size) fault_at_address(w, lane, site, Kind::address, "local access out of bounds", address);
    return {w.local + static_cast<u64>(lane) * size + address, space};
  }
  if (space == Space::global && !allocations().find(address, bytes) && (!foreign_memory || in_cluster_window(address)))
    return locate_elsewhere(w, lane, site, named, address, bytes);
  return {reinterpret_cast<u8*>(address), space};
}

// mapa, getctarank, cvta and isspacep of distributed shared memory; `generic` addresses or those of cluster space.
u64 map_to_rank(const Warp& w, int lane, const Site& site, u64 address, u32 rank, bool generic);
u32 rank_at(const Warp& w, int lane, const Site& site, u64 address, bool generic);
u64 cluster_to_generic(const Warp& w, u64 address);
u64 generic_to_cluster(const Warp& w, u64 address);
inline bool is_in_cluster(const Warp& w, u64 address) {
  return in_cluster_window(address) || space_of(w, address) == Space::shared;
}

// What watch.cpp does with the accesses while a check is on.
extern bool watching;
void watch_load(Warp& w, int lane, const Site& site, Spot spot, u32 bytes, Order order, void* value);
void watch_store(Warp& w, int lane, const Site& site, Spot spot, u32 bytes, Order order, const void* value);
void watch_atomic(Warp& w, int lane, const Site& site, Spot spot, u32 bytes, Order order, bool reads);
void watch_fence(Warp& w, int lane, Scope scope);
void watch_sync_warp(Warp& w, u32 mask);
void watch_copy_issued(Warp& w, int lane, const Site& site, Spot to, u32 bytes);
void watch_copy_done(Warp& w, int lane, const Site& site, Spot to, u32 bytes);

template <class T>
inline T load(Warp& w, int lane, const Site& site, Spot spot, u32 offset, Order order = Order::weak) {
  spot.at += offset;
  T value;
  if (watching && spot.space <= Space::cluster) [[unlikely]]
    watch_load(w, lane, site, spot, sizeof value, order, &value);
  else std::memcpy(&value, spot.at, sizeof value);
  return value;
}

template <class T>
inline void store(Warp& w, int lane, const Site& site, Spot spot, u32 offset, T value, Order order = Order::weak) {
  spot.at += offset;
  if (watching && spot.space <= Space::cluster) [[unlikely]]
    watch_store(w, lane, site, spot, sizeof value, order, &value);
  else std::memcpy(spot.at, &value, sizeof value);
}

// Without `reads` the old value is of no account: an exchange may be the first write.
template <class T, class F>
inline T atomic(Warp& w, int lane, const Site& site, Spot spot, u32 offset, Order order, bool reads, F update) {
  spot.at += offset;
  if (watching && spot.space <= Space::cluster) [[unlikely]]
    watch_atomic(w, lane, site, spot, sizeof(T), order, reads);
  const T old = read_as<T>(spot.at), next = update(old);
  std::memcpy(spot.at, &next, sizeof next);
  return old;
}

inline void fence(Warp& w, int lane, Scope scope) {
  if (watching) [[unlikely]]
    watch_fence(w, lane, scope);
}

// Orders the lanes' accesses before it and after it.
inline void sync_warp(Warp& w, u32 mask) {
  ++w.epoch;
  if (watching) [[unlikely]]
    watch_sync_warp(w, mask);
}

// mbarrier. An arrival returns the phase that it is in; a test is whether that phase, or the last one of a parity, has
// completed.
struct Arrival {
  u32 count;
  s64 bytes;  // of copies that the phase is to wait for
  bool completes, releases;
};
void mbarrier_init(Warp& w, int lane, const Site& site, Spot spot, u32 count);
void mbarrier_inval(Warp& w, int lane, const Site& site, Spot spot);
u64 mbarrier_arrive(Warp& w, int lane, const Site& site, Spot spot, Arrival arrival);
bool mbarrier_test(Warp& w, int lane, const Site& site, Spot spot, u64 phase, bool acquires);
bool mbarrier_test_parity(Warp& w, int lane, const Site& site, Spot spot, u32 parity, bool acquires);

// cp.async. All of a copy's bytes are checked where it is issued.
void issue_copy(Warp& w, int lane, const Site& site, u64 to, u64 from, u32 bytes, u32 filled);
void commit_copies(Warp& w, int lane);
void wait_for_copies(Warp& w, int lane, u32 groups_left);
void wait_for_all_copies(Warp& w, int lane);

// cp.async.bulk. With an mbarrier it happens when somebody tests a phase that lacks nothing else, and otherwise when
// its thread waits for its group.
void issue_bulk_copy(Warp& w, int lane, const Site& site, Space to_space, u64 to, Space from_space, u64 from, u32 bytes,
                     const Spot* mbarrier);
void add_to_mbarrier(Warp& w, const Site& site, Spot mbarrier, BulkCopy copy);
void commit_bulk_copies(Warp& w, int lane);
void wait_for_bulk_copies(Warp& w, int lane, u32 groups_left);

}  // namespace ptx
