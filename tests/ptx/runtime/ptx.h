// What a program or Python may ask the runtime, besides the CUDA runtime API.
#pragma once

#include <cstddef>

extern "C" {

// The last fault of a kernel, in words; "" if there was none since ptx_clear_fault.
const char* ptx_last_fault();
void ptx_clear_fault();

// Makes memory of the host known as memory of the device, so that accesses to it are checked. Of memory that is not
// `written`, reads before a write are faults while that check is on.
void ptx_register(const void* begin, std::size_t bytes, int written);
void ptx_unregister(const void* begin);
}
