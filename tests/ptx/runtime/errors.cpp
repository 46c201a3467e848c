#include "errors.h"

#include <cstdio>
#include <cstdlib>

#include "ptx.h"

namespace ptx {

bool exit_on_fault = false;

namespace {

cudaError_t last = cudaSuccess, fault_error = cudaSuccess;
std::string fault_message;  // of the last fault, which became this error:
cudaError_t fault_kind = cudaSuccess;

cudaError_t error_of(Kind kind) {
  switch (kind) {
    case Kind::address: return cudaErrorIllegalAddress;
    case Kind::alignment: return cudaErrorMisalignedAddress;
    case Kind::assertion: return cudaErrorAssert;
    case Kind::timeout: return cudaErrorLaunchTimeout;
    case Kind::launch: break;
  }
  return cudaErrorLaunchFailure;
}

struct Named {
  cudaError_t error;
  const char *name, *text;
};
constexpr Named names[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidSymbol, "cudaErrorInvalidSymbol", "invalid device symbol"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice", "no kernel image is available for the device"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorMisalignedAddress, "cudaErrorMisalignedAddress", "misaligned address"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources", "too many resources requested for launch"},
    {cudaErrorLaunchTimeout, "cudaErrorLaunchTimeout", "the launch timed out and was terminated"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorAssert, "cudaErrorAssert", "device-side assert triggered"},
    {cudaErrorCooperativeLaunchTooLarge, "cudaErrorCooperativeLaunchTooLarge", "too many blocks in cooperative launch"},
    {cudaErrorInvalidClusterSize, "cudaErrorInvalidClusterSize", "cluster misconfiguration"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
};

const Named* named(cudaError_t error) {
  for (const Named& n : names)
    if (n.error == error) return &n;
  return nullptr;
}

}  // namespace

cudaError_t failed(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

cudaError_t unless_failed() { return fault_error; }

cudaError_t faulted(const Fault& fault) {
  fault_message = fault.message;
  if (exit_on_fault) {
    std::fflush(stdout);
    std::fprintf(stderr, "ptx: %s\n", fault_message.c_str());
    std::_Exit(99);
  }
  return fault_error = fault_kind = failed(error_of(fault.kind));
}

}  // namespace ptx

extern "C" {

const char* ptx_last_fault() { return ptx::fault_message.c_str(); }

void ptx_clear_fault() {
  ptx::fault_message.clear();
  ptx::fault_error = ptx::fault_kind = ptx::last = cudaSuccess;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = ptx::last;
  ptx::last = ptx::fault_error = cudaSuccess;  // on a device a fault stays; a test goes on
  return error;
}

cudaError_t cudaPeekAtLastError() { return ptx::last; }

// With more to say than a device has, where the error is a fault's.
const char* cudaGetErrorString(cudaError_t error) {
  const ptx::Named* n = ptx::named(error);
  if (error == cudaSuccess || error != ptx::fault_kind) return n ? n->text : "unrecognized error code";
  static std::string said;
  said = std::string(n->text) + "\n" + ptx::fault_message;
  return said.c_str();
}

const char* cudaGetErrorName(cudaError_t error) {
  const ptx::Named* n = ptx::named(error);
  return n ? n->name : "unrecognized error code";
}
}
