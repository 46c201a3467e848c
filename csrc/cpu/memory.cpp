#include "memory.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace lstm_fused {

namespace {

constexpr std::size_t cache_line = 64, huge_page = 2 << 20;
constexpr std::size_t least_piece = 16 << 10, least_block = huge_page / 2;
constexpr std::size_t default_most_kept = 512 << 20;

// Address space that begins where a huge page can; null: the system has none to give.
char* map(std::size_t bytes) {
  void* const found = mmap(nullptr, bytes + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) return nullptr;
  char* const begin = static_cast<char*>(found);
  const std::size_t before = -reinterpret_cast<std::uintptr_t>(begin) % huge_page;
  if (before) munmap(begin, before);
  munmap(begin + before + bytes, huge_page - before);
  return begin + before;
}

// Memory for its first bytes. It would come when it is first written to, but a huge page takes a millisecond or so, for
// which a team would wait in the midst of a step. These are advices: results do not depend on their being taken.
void populate([[maybe_unused]] char* begin, [[maybe_unused]] std::size_t bytes) {
#ifdef MADV_HUGEPAGE
  const std::size_t huge_pages = (bytes + huge_page / 2) / huge_page;  // the last one may be small ones instead
  madvise(begin, huge_pages * huge_page, MADV_HUGEPAGE);
#endif
#ifdef MADV_POPULATE_WRITE
  madvise(begin, bytes, MADV_POPULATE_WRITE);
#endif
}

// A block is a mapping of its own; a piece is part of a page, a huge one, that it shares with others.
class Memory {
 public:
  // Null: the system has none to give.
  char* take(std::size_t bytes) {
    const std::lock_guard lock(mutex);
    return bytes < least_block ? take_piece(piece_bytes(bytes)) : take_block(bytes);
  }

  void give_back(char* begin, std::size_t bytes) {
    const std::lock_guard lock(mutex);
    if (bytes < least_block) {
      keep_piece(begin, piece_bytes(bytes));
    } else {
      blocks.push_back({begin, block_bytes(bytes)});
      kept_bytes += block_bytes(bytes);
    }
    trim();
  }

  std::size_t keep_at_most(std::size_t bytes) {
    const std::lock_guard lock(mutex);
    const std::size_t before = std::exchange(most_kept, bytes);
    trim();
    return before;
  }

  std::mutex mutex;

 private:
  struct Block {
    char* begin;
    std::size_t bytes;
  };

  // Few sizes, so that a block also serves the next call if its sequences are a little longer or shorter. What of it is
  // not written to takes no memory.
  static std::size_t block_bytes(std::size_t bytes) {
    return round_up(bytes, std::max(huge_page, std::bit_floor(bytes) / 4));
  }
  static std::size_t piece_bytes(std::size_t bytes) { return round_up(bytes, cache_line); }
  static std::size_t round_up(std::size_t bytes, std::size_t grain) { return (bytes + grain - 1) / grain * grain; }

  char* take_block(std::size_t bytes) {
    const auto fits = [&](const Block& block) { return block.bytes == block_bytes(bytes); };
    if (const auto found = std::find_if(blocks.rbegin(), blocks.rend(), fits); found != blocks.rend()) {
      char* const begin = found->begin;
      kept_bytes -= found->bytes;
      blocks.erase(std::next(found).base());
      return begin;
    }
    char* const begin = map(block_bytes(bytes));
    if (begin) populate(begin, bytes);
    return begin;
  }

  char* take_piece(std::size_t bytes) {
    auto found = std::ranges::find_if(pieces, [&](const auto& piece) { return piece.second >= bytes; });
    if (found == pieces.end()) {
      char* const page = map(huge_page);
      if (!page) return nullptr;
      populate(page, huge_page);
      kept_bytes += huge_page;
      found = pieces.emplace(page, huge_page).first;
    }
    const auto [begin, free] = *found;
    pieces.erase(found);
    if (free == huge_page) kept_bytes -= huge_page;
    if (free > bytes) pieces.emplace(begin + bytes, free - bytes);
    return begin;
  }

  void keep_piece(char* begin, std::size_t bytes) {
    const auto page = [](const char* address) { return reinterpret_cast<std::uintptr_t>(address) / huge_page; };
    auto next = pieces.lower_bound(begin);
    if (next != pieces.end() && next->first == begin + bytes && page(next->first) == page(begin)) {
      bytes += next->second;
      next = pieces.erase(next);
    }
    if (next != pieces.begin()) {
      const auto before = std::prev(next);
      if (before->first + before->second == begin && page(before->first) == page(begin)) {
        before->second += bytes;
        if (before->second == huge_page) kept_bytes += huge_page;
        return;
      }
    }
    pieces.emplace_hint(next, begin, bytes);
    if (bytes == huge_page) kept_bytes += huge_page;
  }

  // The blocks that were freed first go first.
  void trim() {
    for (; kept_bytes > most_kept && !blocks.empty(); blocks.pop_front()) {
      munmap(blocks.front().begin, blocks.front().bytes);
      kept_bytes -= blocks.front().bytes;
    }
    for (auto piece = pieces.begin(); kept_bytes > most_kept && piece != pieces.end();) {
      const auto [begin, bytes] = *piece;
      if (bytes < huge_page) {
        ++piece;
        continue;
      }
      munmap(begin, bytes);
      kept_bytes -= bytes;
      piece = pieces.erase(piece);
    }
  }

  std::deque<Block> blocks;             // kept ones
  std::map<char*, std::size_t> pieces;  // of every page, what is free
  std::size_t kept_bytes = 0;           // of blocks and of pages that are free as a whole
  std::size_t most_kept = default_most_kept;
};

Memory& memory() {
  static Memory& only = []() -> Memory& {
    static Memory& made = *new Memory;  // outlives every tensor
    pthread_atfork([] { made.mutex.lock(); }, [] { made.mutex.unlock(); }, [] { made.mutex.unlock(); });
    return made;
  }();
  return only;
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    char* const begin = bytes < least_piece ? nullptr : memory().take(bytes);
    if (!begin) return c10::GetDefaultCPUAllocator()->allocate(bytes);
    c10::profiledCPUMemoryReporter().New(begin, bytes);
    return {begin, new Taken{begin, bytes}, free, c10::Device(c10::kCPU)};
  }

  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  struct Taken {
    char* begin;
    std::size_t bytes;
  };

  static void free(void* context) {
    const std::unique_ptr<Taken> taken(static_cast<Taken*>(context));
    c10::profiledCPUMemoryReporter().Delete(taken->begin);
    memory().give_back(taken->begin, taken->bytes);
  }
};

}  // namespace

at::Tensor allocate(at::IntArrayRef sizes, const at::TensorOptions& options) {
  static Allocator& allocator = *new Allocator;
  // A process that has given torch an allocator of its own wants that one.
  const bool usual = c10::GetCPUAllocator() == c10::GetDefaultCPUAllocator();
  if (!options.device().is_cpu() || !usual) return at::empty(sizes, options);
  const at::ScalarType dtype = c10::typeMetaToScalarType(options.dtype());
  return at::detail::empty_generic(sizes, &allocator, c10::DispatchKeySet(c10::DispatchKey::CPU), dtype, std::nullopt);
}

at::Tensor allocate_zeros(at::IntArrayRef sizes, const at::TensorOptions& options) {
  if (!options.device().is_cpu()) return at::zeros(sizes, options);
  at::Tensor tensor = allocate(sizes, options);
  std::memset(tensor.mutable_data_ptr(), 0, tensor.nbytes());
  return tensor;
}

std::int64_t keep_memory(std::int64_t limit) {
  TORCH_CHECK_VALUE(limit >= 0, "limit: expected a number of bytes that is not negative, got ", limit);
  return static_cast<std::int64_t>(memory().keep_at_most(static_cast<std::size_t>(limit)));
}

}  // namespace lstm_fused
