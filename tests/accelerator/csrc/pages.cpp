#include "pages.h"

#include "arena.h"

#include <sys/mman.h>

#include <map>
#include <mutex>
#include <vector>

namespace lowtide_sim {

namespace {

struct Kept {
  std::mutex mutex;
  std::map<size_t, std::vector<void*>> by_size;
};

// Never destroyed: storages outlive static destructors.
Kept& kept() {
  static auto* instance = new Kept();
  return *instance;
}

}  // namespace

void* take_pages(size_t bytes) {
  {
    std::lock_guard<std::mutex> guard(kept().mutex);
    auto& spare = kept().by_size[bytes];
    if (!spare.empty()) {
      void* address = spare.back();
      spare.pop_back();
      return address;
    }
  }
  void* address =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) return nullptr;
  // A device has no page faults: large pages keep the host's from being timed as if it had.
  madvise(address, bytes, MADV_HUGEPAGE);
  return address;
}

void give_back_pages(void* address, size_t bytes) {
  if (!arena_settings().keep_pages) {
    munmap(address, bytes);
    return;
  }
  std::lock_guard<std::mutex> guard(kept().mutex);
  kept().by_size[bytes].push_back(address);
}

void drop_pages() {
  std::lock_guard<std::mutex> guard(kept().mutex);
  for (auto& [bytes, spare] : kept().by_size)
    for (void* address : spare) munmap(address, bytes);
  kept().by_size.clear();
}

}  // namespace lowtide_sim
