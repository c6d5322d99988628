// What this machine is: its architecture, and what its CPU offers.
#pragma once

#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fstream>
#include <set>
#include <sstream>
#include <string>

namespace tvmq {

#if defined(__aarch64__)
constexpr int kMachine = 183;
constexpr const char* kMachineName = "aarch64";
#elif defined(__x86_64__)
constexpr int kMachine = 62;
constexpr const char* kMachineName = "x86_64";
#else
#error "TVM has no runtime library for this machine"
#endif

// The CPU features of this machine as Linux spells them.
inline std::set<std::string> CpuFeatures() {
  std::set<std::string> found;
#if defined(__aarch64__)
  static const struct { int word, bit; const char* name; } table[] = {
      {AT_HWCAP, 1, "asimd"},     {AT_HWCAP, 8, "atomics"}, {AT_HWCAP, 10, "asimdhp"}, {AT_HWCAP, 12, "asimdrdm"},
      {AT_HWCAP, 20, "asimddp"},  {AT_HWCAP, 22, "sve"},    {AT_HWCAP2, 1, "sve2"},    {AT_HWCAP2, 13, "i8mm"}};
  for (const auto& row : table) {
    if (getauxval(row.word) >> row.bit & 1) found.insert(row.name);
  }
#else
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("flags", 0) != 0) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    for (std::string word; words >> word;) found.insert(word);
    break;
  }
#endif
  return found;
}

// Ask Linux to let this process use AMX tiles, whose state is large.
inline bool MayUseTiles() {
#if defined(__x86_64__)
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace tvmq
