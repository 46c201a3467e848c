#include "runtime.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <cstdlib>

namespace lstm_fused {

namespace {

// From the least to the most capable.
const std::vector<const IsaKernels*>& all_isas() {
  static const std::vector<const IsaKernels*> all = {
      &scalar::isa,
#if defined(__x86_64__)
      &avx2::isa,
      &avx512::isa,
#endif
  };
  return all;
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const IsaKernels* find_isa(const std::string& name, const char* source) {
  const IsaKernels* best = nullptr;
  for (const IsaKernels* isa : all_isas())
    if (isa->available() && (name.empty() || isa->name == name)) best = isa;
  TORCH_CHECK(best, source, ": expected an instruction set available on this machine (", join(available_isas()),
              "), got '", name, "'");
  return best;
}

std::atomic<const IsaKernels*> chosen_isa{nullptr};

enum PlanChoice { from_environment, cost_model, rows, units, serial };
const char* const plan_names[] = {nullptr, "", "rows", "units", "serial"};
std::atomic<int> chosen_plan{from_environment};

int find_plan(const std::string& name, const char* source) {
  for (int choice = cost_model; choice <= serial; ++choice)
    if (name == plan_names[choice]) return choice;
  TORCH_CHECK(false, source, ": expected rows, units, serial or nothing, got '", name, "'");
}

}  // namespace

const IsaKernels& active_isa() {
  const IsaKernels* isa = chosen_isa.load(std::memory_order_acquire);
  if (!isa) {
    isa = find_isa(environment("LSTM_FUSED_ISA"), "LSTM_FUSED_ISA");
    chosen_isa = isa;
  }
  return *isa;
}

void set_isa(const std::string& name) { chosen_isa = name.empty() ? nullptr : find_isa(name, "isa"); }

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const IsaKernels* isa : all_isas()) names.emplace_back(isa->name);
  return names;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const IsaKernels* isa : all_isas())
    if (isa->available()) names.emplace_back(isa->name);
  return names;
}

void set_forced_plan(const std::string& name) {
  chosen_plan = name.empty() ? from_environment : find_plan(name, "plan");
}

std::string forced_plan() {
  int choice = chosen_plan.load(std::memory_order_relaxed);
  if (choice == from_environment) {
    choice = find_plan(environment("LSTM_FUSED_PLAN"), "LSTM_FUSED_PLAN");
    chosen_plan = choice;
  }
  return plan_names[choice];
}

int usable_threads() {
  if (in_forked_child()) {
    if (at::get_num_threads() != 1) at::set_num_threads(1);  // or PyTorch's own GEMMs would wait for the parent's pool
    return 1;
  }
  return at::in_parallel_region() ? 1 : at::get_num_threads();
}

}  // namespace lstm_fused
