#include "order.h"

#include <algorithm>

namespace ptx {

namespace {

u64 key(u32 block, u32 thread) { return u64{block} * most_threads + thread; }

template <class K>
void join_maps(std::unordered_map<K, u32>& into, const std::unordered_map<K, u32>& from) {
  for (const auto& [k, epoch] : from) {
    u32& mine = into[k];
    mine = std::max(mine, epoch);
  }
}

constexpr int index(Scope scope) { return static_cast<int>(scope); }

}  // namespace

void Knowledge::join(const Knowledge& other) {
  join_maps(below, other.below);
  join_maps(upto, other.upto);
}

void Knowledge::drop_implied() {
  std::erase_if(upto, [&](const auto& entry) {
    const auto found = below.find(static_cast<u32>(entry.first / most_threads));
    return found != below.end() && found->second > entry.second;
  });
}

bool Knowledge::all_of(u32 block, u32 epoch) const {
  const auto found = below.find(block);
  return found != below.end() && epoch < found->second;
}

bool Knowledge::one_of(u32 block, u32 thread, u32 epoch) const {
  const auto found = upto.find(key(block, thread));
  return found != upto.end() && epoch <= found->second;
}

void Ordering::join(const Ordering& other) {
  known.join(other.known);
  for (int s = 0; s < 2; ++s) {
    observed[s].join(other.observed[s]);
    fenced[s].join(other.fenced[s]);
  }
}

void OrderOfBlock::acquire(u32 thread, Scope scope) {
  OrderOfThread& t = threads[thread];
  for (int s = 0; s <= index(scope); ++s) {
    t.known.join(t.observed[s]);
    t.known.join(observed[s]);
  }
}

void OrderOfBlock::release(const Block& b, u32 thread, Scope scope) {
  OrderOfThread& t = threads[thread];
  Knowledge now = known;
  now.join(t.known);
  now.below[b.index] = b.epoch;
  now.upto[key(b.index, thread)] = epoch_of(b.warps[thread / lanes], static_cast<int>(thread % lanes));
  for (int s = 0; s <= index(scope); ++s) t.fenced[s].join(now);
}

void OrderOfBlock::fence(const Block& b, u32 thread, Scope scope) {
  acquire(thread, scope);
  release(b, thread, scope);
}

void OrderOfBlock::observe(const Block& b, u32 thread, u64 address, std::unordered_map<u64, Release>& releases) {
  const auto found = releases.find(address);
  if (found == releases.end()) return;
  OrderOfThread& t = threads[thread];
  u64& seen = t.seen[address];
  if (seen == found->second.version) return;
  seen = found->second.version;
  t.observed[index(Scope::device)].join(found->second.device);
  const auto within = found->second.within.find(b.index);
  if (within != found->second.within.end()) t.observed[index(Scope::block)].join(within->second);
}

void OrderOfBlock::publish(const Block& b, u32 thread, u64 address, std::unordered_map<u64, Release>& releases) {
  const OrderOfThread& t = threads[thread];
  Release& r = releases[address];
  ++r.version;
  r.device.join(fenced[index(Scope::device)]);
  r.device.join(t.fenced[index(Scope::device)]);
  r.within[b.index].join(fenced[index(Scope::block)]);
  r.within[b.index].join(t.fenced[index(Scope::block)]);
}

void OrderOfBlock::barrier() {
  for (const auto& [thread, t] : threads) join(t);
  threads.clear();
  known.drop_implied();
  for (int s = 0; s < 2; ++s) {
    observed[s].drop_implied();
    fenced[s].drop_implied();
  }
}

void OrderOfBlock::sync_warp(u32 first_thread, u32 mask) {
  Ordering all;
  bool any = false;
  for (u32 l = 0; l < lanes; ++l)
    if (const auto t = threads.find(first_thread + l); holds(mask, l) && t != threads.end()) {
      all.join(t->second);
      any = true;
    }
  for (u32 l = 0; any && l < lanes; ++l)
    if (holds(mask, l)) threads[first_thread + l].join(all);
}

void OrderOfBlock::arrive(const Block& b, u32 first_thread, u32 mask, bool releases, Knowledge& arriving) {
  const auto released = [&](const Ordering& o) -> const Knowledge& {
    return releases ? o.known : o.fenced[index(Scope::device)];
  };
  arriving.join(released(*this));
  for (u32 l = 0; l < lanes; ++l) {
    if (!holds(mask, l)) continue;
    const u32 epoch = epoch_of(b.warps[first_thread / lanes], static_cast<int>(l));
    if (releases) arriving.below[b.index] = std::max(arriving.below[b.index], epoch + 1);
    if (const auto t = threads.find(first_thread + l); t != threads.end()) arriving.join(released(t->second));
  }
}

void OrderOfBlock::join(u32 first_thread, u32 mask, const Knowledge& other) {
  for (u32 l = 0; l < lanes; ++l)
    if (holds(mask, l)) threads[first_thread + l].known.join(other);
}

bool OrderOfBlock::knows(u32 thread, u32 other_block, u32 other_thread, u32 epoch) const {
  if (known.holds(other_block, other_thread, epoch)) return true;
  const auto t = threads.find(thread);
  return t != threads.end() && t->second.known.holds(other_block, other_thread, epoch);
}

bool OrderOfBlock::knows_all_of(u32 thread, u32 other_block, u32 epoch) const {
  if (known.all_of(other_block, epoch)) return true;
  const auto t = threads.find(thread);
  return t != threads.end() && t->second.known.all_of(other_block, epoch);
}

}  // namespace ptx
