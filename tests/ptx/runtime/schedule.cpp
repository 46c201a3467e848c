#include "schedule.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>

#include "access.h"
#include "fault.h"
#include "settings.h"
#include "watch.h"

namespace ptx {

u64 executed = 0;

namespace {

constexpr u8 never_written = 0xff;  // NaN in every float type
constexpr int long_slice = 1000, longest_random_slice = 64;  // basic blocks

struct Free {
  void operator()(u8* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<u8, Free>;

Memory aligned(u64 bytes) { return Memory(static_cast<u8*>(std::aligned_alloc(1024, (bytes + 1024) / 1024 * 1024))); }

// A block in flight, with its memory; when it has finished, the next block of the grid takes its place.
struct Resident {
  Block block{};
  Memory shared;
  std::vector<Memory> of_warps;

  Resident(Grid& grid, u32 threads, u32 shared_bytes) : shared(aligned(shared_bytes)) {
    block.grid = &grid;
    block.threads = threads;
    block.shared = shared.get();
    block.shared_bytes = shared_bytes;
    block.warps.resize((threads + lanes - 1) / lanes);
    for (Warp& w : block.warps) {
      w.block = &block;
      w.registers = of_warps.emplace_back(aligned(grid.kernel->register_bytes)).get();
      w.local = of_warps.emplace_back(aligned(u64{lanes} * grid.kernel->local_bytes)).get();
    }
  }

  void start(u64 index) {
    const Grid& grid = *block.grid;
    const u32 *n = grid.nctaid, *t = grid.ntid;
    block.index = static_cast<u32>(index);
    block.ctaid[0] = static_cast<u32>(index % n[0]);
    block.ctaid[1] = static_cast<u32>(index / n[0] % n[1]);
    block.ctaid[2] = static_cast<u32>(index / n[0] / n[1]);
    block.live = block.threads;
    block.epoch = 1;
    std::fill(std::begin(block.barriers), std::end(block.barriers), Barrier{});
    std::memset(block.shared, never_written, block.shared_bytes);
    for (u32 k = 0; k < block.warps.size(); ++k) {
      Warp& w = block.warps[k];
      w.id = k;
      w.live = w.waiting = w.parked = w.picks = w.epoch = 0;
      w.parked_site = nullptr;
      std::memset(w.registers, 0, grid.kernel->register_bytes);
      std::memset(w.local, never_written, u64{lanes} * grid.kernel->local_bytes);
      for (int l = 0; l < lanes; ++l) {
        const u32 thread = k * lanes + static_cast<u32>(l);
        w.pc[l] = 0;
        w.copies[l].clear();
        w.tid[0][l] = thread % t[0];
        w.tid[1][l] = thread / t[0] % t[1];
        w.tid[2][l] = thread / t[0] / t[1];
        w.live |= static_cast<u32>(thread < block.threads) << l;
      }
    }
    if (watching) watch_block_start(block);
  }
};

std::mt19937_64& random_numbers() {
  static std::mt19937_64 generator;
  return generator;
}

class Run {
 public:
  Run(Grid& grid, u64 blocks, u64 resident, u32 threads, u32 shared_bytes) : blocks_(blocks), first_(executed) {
    for (u64 i = 0; i < std::min(resident, blocks); ++i) {
      residents_.push_back(std::make_unique<Resident>(grid, threads, shared_bytes));
      residents_.back()->start(next_++);
    }
    warp_order_.resize(residents_[0]->block.warps.size());
    std::iota(warp_order_.begin(), warp_order_.end(), 0);
    if (settings().seed) std::shuffle(residents_.begin(), residents_.end(), random_numbers());
  }

  void all() {
    while (!residents_.empty()) {
      bool progress = false;
      for (std::size_t i = 0; i < residents_.size();) {
        progress |= some(residents_[i]->block);
        if (residents_[i]->block.live) {
          ++i;
          continue;
        }
        if (watching) watch_block_end(residents_[i]->block);
        if (next_ < blocks_) residents_[i++]->start(next_++);
        else residents_.erase(residents_.begin() + static_cast<s64>(i));
      }
      if (!progress && !residents_.empty()) deadlock();
    }
  }

 private:
  // Runs the warps of a block until all wait for each other, or for other blocks.
  bool some(Block& block) {
    bool any = false, again = true;
    while (again && block.live) {
      again = false;
      if (settings().seed) std::shuffle(warp_order_.begin(), warp_order_.end(), random_numbers());
      for (const u32 k : warp_order_) {
        Warp& w = block.warps[k];
        if (!(w.live & ~w.waiting)) continue;
        const u64 before = executed;
        const Outcome outcome = block.grid->kernel->run(w, slice());
        if (executed == before) continue;
        any = true;
        again |= outcome != Outcome::yielded;
        if (executed - first_ > settings().limit) endless(w);
      }
    }
    return any;
  }

  int slice() const {
    return settings().seed ? 1 + static_cast<int>(random_numbers()() % longest_random_slice) : long_slice;
  }

  [[noreturn]] void endless(const Warp& w) const {
    const std::string text = "no end after " + std::to_string(executed - first_) + " thread instructions, in warp ";
    throw Fault{Kind::timeout, text + std::to_string(w.id) + " of kernel " + waits(*w.block)};
  }

  [[noreturn]] void deadlock() const { throw Fault{Kind::launch, "deadlock in kernel " + waits(residents_[0]->block)}; }

  // The kernel's name, and what the warps of a block wait for.
  static std::string waits(const Block& b) {
    std::string text = readable(b.grid->kernel->name);
    const auto add = [&](const Warp& w, u32 mask, const char* what, const Site* site) {
      if (!mask || !site) return;
      char who[64];
      std::snprintf(who, sizeof who, "\n  lanes %08x of warp %u wait ", mask, w.id);
      text += who + std::string(what) + whereabouts(w, first_lane(mask), *site);
    };
    for (const Warp& w : b.warps) {
      const u32 at_barrier = w.live & w.waiting;
      add(w, at_barrier, "for the block: ", at_barrier ? w.barrier_site[first_lane(at_barrier)] : nullptr);
      u32 parked = 0;
      for (int l = 0; l < lanes; ++l) parked |= static_cast<u32>(w.pc[l] == w.parked_pc) << l;
      add(w, w.live & ~w.waiting & parked, "for lanes of the warp: ", w.parked_site);
    }
    return text;
  }

  u64 blocks_, next_ = 0, first_;
  std::vector<std::unique_ptr<Resident>> residents_;
  std::vector<u32> warp_order_;
};

void report(const Grid& grid, u64 instructions, double seconds) {
  const u32 *g = grid.nctaid, *t = grid.ntid;
  std::fprintf(stderr, "ptx: %s grid %ux%ux%u block %ux%ux%u: %llu thread instructions, %.3f s, %.1f M/s\n",
               readable(grid.kernel->name).c_str(), g[0], g[1], g[2], t[0], t[1], t[2],
               static_cast<unsigned long long>(instructions), seconds,
               static_cast<double>(instructions) / seconds / 1e6);
}

// The grid's workspace, which cooperative groups keep their barrier in.
struct Workspace {
  alignas(16) u32 words[8] = {sizeof words};
  Workspace() { allocations().add(words, sizeof words, false); }
  ~Workspace() { allocations().remove(words); }
};

}  // namespace

void run_grid(const Kernel& kernel, dim3 grid, dim3 block, void** arguments, u64 dynamic_shared, u64 resident,
              u32 sms) {
  static u64 launches = 0, seed = 0;
  if (seed != settings().seed) random_numbers().seed(seed = settings().seed);
  std::vector<u8> parameters(kernel.parameter_bytes + 16);
  for (u32 i = 0; i < kernel.parameters; ++i)
    std::memcpy(&parameters[kernel.parameter_offsets[i]], arguments[i], kernel.parameter_sizes[i]);
  const Workspace workspace;
  Grid g{&kernel,
         {block.x, block.y, block.z},
         {grid.x, grid.y, grid.z},
         parameters.data(),
         reinterpret_cast<u64>(workspace.words),
         ++launches,
         sms};
  const u64 first = executed;
  const auto start = std::chrono::steady_clock::now();
  const u32 shared = static_cast<u32>((kernel.shared_bytes + dynamic_shared + 15) / 16 * 16);
  const WatchLaunch watch(g);
  Run(g, u64{grid.x} * grid.y * grid.z, resident, block.x * block.y * block.z, shared).all();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  if (settings().verbose) report(g, executed - first, took.count());
}

}  // namespace ptx
