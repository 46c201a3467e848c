// What translated kernels call on the host's side, and how they and their variables become known.
#pragma once

#include <string>

#include "warp.h"

namespace ptx {

struct RegisterKernel {
  explicit RegisterKernel(const Kernel& kernel);
};
struct RegisterVariable {
  RegisterVariable(const char* name, void* address, u64 size);
};

struct Variable {
  void* address = nullptr;
  u64 size = 0;
};
const Kernel* kernel_named(const std::string& name);  // null if there is none
const Variable* variable_named(const std::string& name);

u64 device_printf(u64 format, u64 arguments);
[[noreturn]] void device_assert(const Warp& w, int lane, const Site& site, u64 message);
u64 device_malloc(u64 bytes);
void device_free(u64 address);

}  // namespace ptx
