#include "weak.h"

#include <utility>

namespace ptx {

namespace {

void write(u64 address, u8 value) { *reinterpret_cast<u8*>(address) = value; }

}  // namespace

void StoreBuffer::store(u64 address, const void* value, u32 count, u32 thread, u32 epoch, bool is_strong) {
  for (u32 i = 0; i < count; ++i) {
    const u64 at = address + i;
    if (const auto found = bytes.find(at); found != bytes.end() && found->second.strong) write(at, found->second.value);
    bytes[at] = {static_cast<const u8*>(value)[i], is_strong, thread, epoch};
    if (is_strong) strong.push_back(at);
  }
}

void StoreBuffer::overlay(u64 address, void* value, u32 count) const {
  if (bytes.empty()) return;
  for (u32 i = 0; i < count; ++i)
    if (const auto found = bytes.find(address + i); found != bytes.end())
      static_cast<u8*>(value)[i] = found->second.value;
}

void StoreBuffer::flush(u64 address, u32 count) {
  for (u64 a = address; a < address + count; ++a)
    if (const auto found = bytes.find(a); found != bytes.end()) {
      write(a, found->second.value);
      bytes.erase(found);
    }
}

void StoreBuffer::drop(u64 address, u32 count) {
  for (u64 a = address; a < address + count; ++a) bytes.erase(a);
}

void StoreBuffer::fence(u32 thread, u32 epoch) {
  std::erase_if(bytes, [&](const auto& entry) {
    const Byte& byte = entry.second;
    if (byte.thread != thread && byte.epoch >= epoch) return false;
    write(entry.first, byte.value);
    return true;
  });
}

void StoreBuffer::end_round() {
  for (const u64 address : earlier)
    if (const auto found = bytes.find(address); found != bytes.end() && found->second.strong) flush(address, 1);
  earlier = std::exchange(strong, {});
}

void StoreBuffer::flush_all() {
  for (const auto& [address, byte] : bytes) write(address, byte.value);
  bytes.clear();
}

}  // namespace ptx
