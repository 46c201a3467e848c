#include "device.h"

#include <cstdio>
#include <cstdlib>
#include <map>

#include "access.h"

namespace ptx {

namespace {

// Functions, as the translated files register before main and in any order.
std::map<std::string, const Kernel*>& kernels() {
  static std::map<std::string, const Kernel*> all;
  return all;
}
std::map<std::string, Variable>& variables() {
  static std::map<std::string, Variable> all;
  return all;
}

// The arguments of a device printf lie one after the other, each aligned to its size.
template <class T>
T next_argument(u64& at) {
  at = (at + sizeof(T) - 1) / sizeof(T) * sizeof(T);
  const T value = read_as<T>(reinterpret_cast<const void*>(at));
  at += sizeof(T);
  return value;
}

}  // namespace

RegisterKernel::RegisterKernel(const Kernel& kernel) { kernels()[kernel.name] = &kernel; }

RegisterVariable::RegisterVariable(const char* name, void* address, u64 size) {
  variables()[name] = {address, size};
  allocations().add(address, size, false);
}

const Kernel* kernel_named(const std::string& name) {
  const auto found = kernels().find(name);
  return found == kernels().end() ? nullptr : found->second;
}

const Variable* variable_named(const std::string& name) {
  const auto found = variables().find(name);
  return found == variables().end() ? nullptr : &found->second;
}

u64 device_printf(u64 format, u64 arguments) {
  std::string out;
  u64 printed = 0;
  for (const char* p = reinterpret_cast<const char*>(format); *p;) {
    if (*p != '%' || p[1] == '%') {
      out += *p;
      p += *p == '%' ? 2 : 1;
      continue;
    }
    std::string one(p, std::strcspn(p, "diouxXeEfFgGaAcsp") + 1);
    p += one.size();
    char text[512];
    const char kind = one.back();
    if (std::strchr("eEfFgGaA", kind)) std::snprintf(text, sizeof text, one.c_str(), next_argument<f64>(arguments));
    else if (kind == 's' || kind == 'p' || one.find('l') != std::string::npos)
      std::snprintf(text, sizeof text, one.c_str(), next_argument<u64>(arguments));
    else std::snprintf(text, sizeof text, one.c_str(), next_argument<u32>(arguments));
    out += text;
    ++printed;
  }
  std::fputs(out.c_str(), stdout);
  return printed;
}

void device_assert(const Warp& w, int lane, const Site& site, u64 message) {
  const std::string text = reinterpret_cast<const char*>(message);
  fault(w, lane, site, Kind::assertion, "device assertion failed: " + text);
}

u64 device_malloc(u64 bytes) {
  void* memory = std::malloc(bytes);
  allocations().add(memory, bytes, false);
  return reinterpret_cast<u64>(memory);
}

void device_free(u64 address) {
  void* memory = reinterpret_cast<void*>(address);
  allocations().remove(memory);
  std::free(memory);
}

}  // namespace ptx
