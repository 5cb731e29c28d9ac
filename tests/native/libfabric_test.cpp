// Test of the libfabric domain without the core: a fake sink, hand-made flows, two domains in one process and in two.
// The tests are in tests/native/libfabric.
//   g++ -std=c++20 -O2 backends/libfabric/*.cpp backends/core/native_backend.cpp tests/native/libfabric/*.cpp
//       tests/native/libfabric_test.cpp -ldl -o libfabric_test
//   ./libfabric_test [provider] [search]      e.g.  tcp .venv/lib/mpich/libfabric.so.1;  ONLY=storm runs one test
// For efa, on emulated devices: python tests/efa_emulator/emulator.py DIRECTORY ./libfabric_test efa ...;  FABRIC=efa
// -fsanitize=address,undefined covers libfabric itself only if it was built with it too.
#include <signal.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "libfabric/fixture.h"

// libfabric's tcp (2.5.1) leaks 8 bytes whenever two sides connect at once and one connection is rejected.
extern "C" const char* __lsan_default_suppressions() { return "leak:libfabric.so"; }

using namespace fabric_test;

namespace {

void print_path() {
  Node node;
  const auto& attributes = node.domain->attributes();
  std::printf("%s %s: %s; pieces <= %zu, messages <= %zu\n", attributes.provider.c_str(), attributes.name.c_str(),
              attributes.protocol.c_str(), attributes.max_piece_nbytes, attributes.max_message_nbytes);
}

void run_all(const Tests& tests) {
  const char* only = std::getenv("ONLY");
  for (const auto& [name, test] : tests) {
    if (only != nullptr && std::string(name).find(only) == std::string::npos) continue;
    std::printf("%s\n", name);
    test();
  }
}

}  // namespace

int main(int argc, char** argv) {
  ::setvbuf(stdout, nullptr, _IOLBF, 0);
  ::signal(SIGPIPE, SIG_IGN);
  if (argc > 1) provider = argv[1];
  search_path = argc > 2 ? argv[2] : "";
  if (const char* delivery = std::getenv("DELIVERY")) extra["delivery"] = delivery;
  if (const char* fabric = std::getenv("FABRIC")) extra["fabric"] = fabric;
  if (const char* endpoints = std::getenv("ENDPOINTS")) extra["endpoints"] = endpoints;
  try {
    if (argc > 3) return run_writer(std::atoi(argv[3]));
    print_path();
    for (const Tests& tests :
         {data_tests(), fence_tests(), connection_tests(), storm_tests(), process_tests(argv[0])}) {
      run_all(tests);
    }
  } catch (const Failure& failure) {
    std::printf("FAILED: %s (%ld) %s\n", failure.what(), static_cast<long>(failure.code), failure.hint.c_str());
    return 1;
  }
  std::printf(harness::failures == 0 ? "all well\n" : "%d FAILED\n", harness::failures);
  return harness::failures == 0 ? 0 : 1;
}
