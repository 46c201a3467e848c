#include "shadow.h"

#include <cstdio>

namespace ptx {

Cell& Shadow::at(u64 address) {
  const u64 number = address / page;
  if (number != last_number_) {
    std::unique_ptr<Page>& found = pages_[number];
    if (!found) found = std::make_unique<Page>();
    last_number_ = number;
    last_ = found.get();
  }
  return (*last_)[address % page];
}

void Shadow::for_each(const std::function<void(u64 address, const Cell& cell)>& visit) const {
  for (const auto& [number, cells] : pages_)
    for (u64 i = 0; i < page; ++i) visit(number * page + i, (*cells)[i]);
}

namespace {

// All that `earlier` stands for happened before the access `now`, which is the present one.
bool ordered(const Warp& w, const Access& earlier, const Access& now) {
  const OrderOfBlock& order = *w.block->order;
  const bool one = !earlier.several && !earlier.many;
  if (earlier.block == now.block) {
    if (earlier.epoch + now.waits < w.block->ordered) return true;
    if (one && earlier.thread == now.thread) return true;
    if (!earlier.many && earlier.thread / lanes == now.thread / lanes && earlier.warp_epoch != now.warp_epoch)
      return true;
  }
  return one ? order.knows(now.thread, earlier.block, earlier.thread, earlier.epoch)
             : order.knows_all_of(now.thread, earlier.block, earlier.epoch);
}

// Strong accesses do not race, if each is strong for the other's thread.
bool both_strong(const Access& a, const Access& b) {
  return a.strong && b.strong && (a.block == b.block || !(a.near || b.near));
}

[[noreturn]] void race(const Warp& w, int lane, const Site& site, const char* now, const char* before, u64 address,
                       const Access& earlier) {
  const Grid& grid = *w.block->grid;
  char text[128];
  std::snprintf(text, sizeof text, "data race at address 0x%llx: %s", static_cast<unsigned long long>(address), now);
  const std::string other = whereabouts(grid, earlier.block, earlier.thread, grid.kernel->sites[earlier.site]);
  fault(w, lane, site, Kind::launch, text, std::string("not ordered after the ") + before + " by " + other);
}

void check_against_write(const Cell& cell, const Access& now, const Warp& w, int lane, const Site& site,
                         const char* does, u64 address) {
  const Access& write = cell.write;
  if (!write.epoch) return;
  if (write.pending && !now.pending)
    race(w, lane, site, does, "cp.async, which has not been waited for,", address, write);
  if (!both_strong(write, now) && !ordered(w, write, now)) race(w, lane, site, does, "write", address, write);
}

void check_against_reads(const Cell& cell, const Access& now, const Warp& w, int lane, const Site& site,
                         const char* does, u64 address) {
  const auto check = [&](const Access& read) {
    if (read.epoch && !both_strong(read, now) && !ordered(w, read, now))
      race(w, lane, site, does, "read", address, read);
  };
  check(cell.read);
  if (cell.reads_by_others)
    for (const Access& read : *cell.reads_by_others) check(read);
}

// One entry a block: later reads take the place of those that happened before them, others are merged.
void add_read(Cell& cell, const Access& now, const Warp& w) {
  Access* mine = !cell.read.epoch || cell.read.block == now.block ? &cell.read : nullptr;
  if (!mine) {
    if (!cell.reads_by_others) cell.reads_by_others = std::make_unique<std::vector<Access>>();
    for (Access& read : *cell.reads_by_others)
      if (read.block == now.block) mine = &read;
    if (!mine) mine = &cell.reads_by_others->emplace_back();
  }
  if (!mine->epoch || ordered(w, *mine, now)) {
    *mine = now;
    return;
  }
  (mine->thread / lanes == now.thread / lanes ? mine->several : mine->many) |= 1;
  mine->strong &= now.strong;
  mine->near |= now.near;
}

}  // namespace

void check_race(Shadow& shadow, Warp& w, int lane, const Site& site, u64 address, u32 bytes, Does does, Order order) {
  const Block& b = *w.block;
  Access now;
  now.epoch = epoch_of(w, lane);
  now.waits = holds(w.open, lane);
  now.block = b.index;
  now.site = static_cast<u32>(&site - b.grid->kernel->sites) & 0x7fff'ffff;
  now.thread = w.id * lanes + static_cast<u32>(lane);
  now.strong = is_strong(order);
  now.near = order == Order::block;
  now.warp_epoch = w.epoch;
  const bool reads = does == Does::read || does == Does::read_constant;
  const char* name = reads ? "read" : does == Does::write ? "write" : "cp.async";
  for (u64 i = address; i < address + bytes; ++i) {
    Cell& cell = shadow.at(i);
    now.pending = does == Does::end_copy;  // the copy's own mark is no obstacle to its end
    check_against_write(cell, now, w, lane, site, name, i);
    if (does == Does::read_constant && cell.write.epoch)
      race(w, lane, site, "ld.global.nc of memory that the kernel writes", "write", i, cell.write);
    if (reads) {
      add_read(cell, now, w);
      continue;
    }
    check_against_reads(cell, now, w, lane, site, name, i);
    now.pending = does == Does::begin_copy;
    cell.write = now;
    cell.read = {};
    cell.reads_by_others.reset();
  }
}

void check_end(const Shadow& shared, const Block& b) {
  shared.for_each([&](u64 address, const Cell& cell) {
    const auto check = [&](const Access& a, const char* does) {
      const Knowledge& known = b.order->known;
      const bool one = !a.several && !a.many;
      if (!a.epoch || a.block == b.index || known.all_of(a.block, a.epoch)) return;
      if (one && known.one_of(a.block, a.thread, a.epoch)) return;
      const std::string who = whereabouts(*b.grid, a.block, a.thread, b.grid->kernel->sites[a.site]);
      char text[96];
      std::snprintf(text, sizeof text, "\n  a %s at address 0x%llx, not ordered before the end of block %u", does,
                    static_cast<unsigned long long>(address - reinterpret_cast<u64>(b.shared)), b.index);
      throw Fault{Kind::launch, "access to the shared memory of a block that may have exited, by " + who + text};
    };
    check(cell.write, "write");
    check(cell.read, "read");
    if (cell.reads_by_others)
      for (const Access& read : *cell.reads_by_others) check(read, "read");
  });
}

}  // namespace ptx
