// Which basic block a warp executes, and by which of its lanes.
#include "warp.h"

namespace ptx {

u32 mask_of(const u32* predicate, u32 among) {
  u32 mask = 0;
  for (int l = 0; l < lanes; ++l) mask |= static_cast<u32>(predicate[l] != 0) << l;
  return mask & among;
}

void set_pc(Warp& w, u32 mask, int pc) {
  for (int l = 0; l < lanes; ++l)
    if (holds(mask, l)) w.pc[l] = pc;
}

void Cursor::use(u32 lanes_now) {
  mask = lanes_now;
  for (int l = 0; l < lanes; ++l) m[l] = 0u - (mask >> l & 1);
}

bool Cursor::choose() {
  const u32 ready = w.live & ~w.waiting & ~w.parked;
  if (!ready) return false;
  const bool highest = (++w.picks & 255) == 0;
  pc = w.pc[first_lane(ready)];
  for (int l = 0; l < lanes; ++l)
    if (holds(ready, l) && (highest ? w.pc[l] > pc : w.pc[l] < pc)) pc = w.pc[l];
  u32 there = 0;
  for (int l = 0; l < lanes; ++l) there |= static_cast<u32>(holds(ready, l) && w.pc[l] == pc) << l;
  use(there);
  return chosen = true;
}

bool Cursor::ready() {
  if (!chosen && !choose()) {
    outcome = w.live ? Outcome::blocked : Outcome::done;
    return false;
  }
  if (--budget >= 0) return true;
  set_pc(w, mask, pc);
  outcome = Outcome::yielded;
  return false;
}

void Cursor::begin(const BasicBlock& block, const Site* sites) {
  progress(block.instructions);
  if (block.step) block.step(w, *w.block, sites, block.offsets, m, mask, mask, done);
}

void Cursor::execute(const BasicBlock& block, const Site* sites) {
  begin(block, sites);
  u32 named = mask;
  if (block.guard >= 0) named = mask_of(reinterpret_cast<const u32*>(w.registers + block.guard), mask);
  if (block.negated) named = mask & ~named;
  switch (block.end) {
    case End::next: return go(pc + 1);
    case End::branch: return branch(named, block.target);
    case End::leave:
      set_pc(w, mask, pc + 1);
      leave(w, named);
      break;
    case End::yield:
      set_pc(w, mask, pc + 1);
      budget = 0;
      break;
  }
  chosen = false;
}

void Cursor::execute_together(const BasicBlock& block, const Site* sites, u32 T, u32 members, const Site& site) {
  if (T) {
    if (!together(T, members, site)) return;
    block.step(w, *w.block, sites, block.offsets, m, mask, T, done);
  } else {
    progress(1);
  }
  go(pc + 1);
}

void Cursor::progress(u32 instructions) {
  w.parked = 0;
  done += static_cast<u64>(instructions) * static_cast<u64>(count(mask));
}

void Cursor::go(int next) {
  pc = next;
  if (mask == (w.live & ~w.waiting)) return;
  set_pc(w, mask, next);
  chosen = false;
}

void Cursor::branch(u32 taken, int target) {
  if (taken == mask) return go(target);
  if (!taken) return go(pc + 1);
  set_pc(w, taken, target);
  set_pc(w, mask & ~taken, pc + 1);
  chosen = false;
}

void Cursor::wait(u32 arriving, u32 barrier, u32 expected, bool waits, const Site& site) {
  set_pc(w, mask, pc + 1);
  if (arriving) arrive(w, arriving, barrier, expected, waits, site);
  chosen = false;
}

// Whether all that a warp-wide instruction names in `members` are here; `taking_part` loses those it does not name.
bool Cursor::together(u32& taking_part, u32 members, const Site& site) {
  if (!holds(members, first_lane(taking_part))) not_named(w, first_lane(taking_part), site);
  if (members & w.live & ~taking_part) {
    set_pc(w, mask, pc);
    w.parked |= mask;
    w.parked_site = &site;
    w.parked_pc = pc;
    chosen = false;
    ++budget;  // nothing was executed: the warp's other lanes have their turn in this slice
    return false;
  }
  if (mask & ~members) {
    set_pc(w, mask, pc);
    use(mask & members);
    taking_part &= members;
  }
  progress(1);
  return true;
}

}  // namespace ptx
