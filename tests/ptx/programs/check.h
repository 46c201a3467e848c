// What the programs share: checked calls, arrays on the device, random numbers, and a report per comparison.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorName(error));
  std::exit(2);
}
#define CHECK(call) check(call, #call)

template <class T>
struct Array {
  T* data = nullptr;
  std::size_t size;

  explicit Array(std::size_t n) : size(n) { CHECK(cudaMalloc(reinterpret_cast<void**>(&data), n * sizeof(T))); }
  explicit Array(const std::vector<T>& host) : Array(host.size()) { set(host); }
  Array(const Array&) = delete;
  ~Array() { cudaFree(data); }
  operator T*() { return data; }

  void set(const std::vector<T>& host) {
    CHECK(cudaMemcpy(data, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  void zero() { CHECK(cudaMemset(data, 0, size * sizeof(T))); }
  std::vector<T> host() const {
    std::vector<T> out(size);
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaGetLastError());
    CHECK(cudaMemcpy(out.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost));
    return out;
  }
};

inline std::mt19937& random_bits() {
  static std::mt19937 generator(1);
  return generator;
}
inline float uniform() { return std::uniform_real_distribution<float>(-1, 1)(random_bits()); }
template <class T = float>
std::vector<T> uniforms(std::size_t n, float scale = 1) {
  std::vector<T> out(n);
  for (T& x : out) x = static_cast<T>(scale * uniform());
  return out;
}

// The largest error seen, against a tolerance; NaN is an error.
struct Comparison {
  const char* name;
  double tolerance;
  double worst = 0;

  void operator()(double got, double expected) {
    const double error = std::fabs(got - expected) / std::fmax(1, std::fabs(expected));
    if (!(error <= worst)) worst = error;
  }
  bool passed() const { return worst <= tolerance; }
  ~Comparison() {
    std::printf("%s: error %.3g, tolerance %.3g, %s\n", name, worst, tolerance, passed() ? "ok" : "WRONG");
    if (!passed()) std::fflush(stdout), std::_Exit(1);
  }
};
