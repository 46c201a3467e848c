#include "settings.h"

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>

#include "access.h"

namespace ptx {

namespace {

Settings current;

u64 number(const char* name, u64 otherwise) {
  const char* text = std::getenv(name);
  return text && *text ? std::strtoull(text, nullptr, 10) : otherwise;
}

// Sets the checks whose words PTX_CHECK has.
void read_checks(Settings& s) {
  s.race = s.unwritten = s.weak = false;
  const char* given = std::getenv("PTX_CHECK");
  std::string words = given ? given : "";
  for (char& c : words)
    if (c == ',') c = ' ';
  std::istringstream rest(words);
  for (std::string word; rest >> word;) {
    const bool all = word == "all";
    if (!all && word != "race" && word != "unwritten" && word != "weak") {
      std::fprintf(stderr, "ptx: PTX_CHECK: expected words of race, unwritten, weak and all, got %s\n", word.c_str());
      std::exit(97);
    }
    s.race |= all || word == "race";
    s.unwritten |= all || word == "unwritten";
    s.weak |= all || word == "weak";
  }
}

}  // namespace

const Settings& settings() { return current; }

void read_settings() {
  read_checks(current);
  current.eager_copies = number("PTX_EAGER", 0);
  current.foreign = number("PTX_FOREIGN", 0);
  current.verbose = number("PTX_VERBOSE", 0);
  current.seed = number("PTX_SEED", 0);
  current.limit = number("PTX_LIMIT", 100'000'000'000);
  watching = current.race || current.unwritten || current.weak;
  foreign_memory = current.foreign;
}

}  // namespace ptx
