// For programs with planted faults: `program CASE sound` runs a kernel that is right, `program CASE planted` its twin
// with the fault.
#pragma once

#include <cstring>

#include "check.h"

struct Data {
  Array<float> x{uniforms(256)}, y{std::vector<float>(256)};
  Array<int> flag{std::vector<int>(4)};
};

struct Case {
  const char* name;
  void (*sound)(Data&);
  void (*planted)(Data&);
};

template <std::size_t n>
int run_case(const Case (&cases)[n], int argc, char** argv) {
  Data data;
  for (const Case& c : cases)
    if (argc == 3 && std::strcmp(argv[1], c.name) == 0) {
      (std::strcmp(argv[2], "planted") == 0 ? c.planted : c.sound)(data);
      CHECK(cudaDeviceSynchronize());
      CHECK(cudaGetLastError());
      std::printf("%s finished\n", c.name);
      return 0;
    }
  std::printf("expected CASE sound|planted\n");
  return 3;
}
