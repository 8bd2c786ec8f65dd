// One device's memory: a caching allocator over host memory, with a capacity.
//
// It follows the rules of torch's CUDA caching allocator, so that allocated and reserved bytes are
// those a GPU would report: sizes rounded to 512 B; requests up to 1 MiB served from 2 MiB segments
// (the small pool), others from 20 MiB segments or, from 10 MiB on, from one segment rounded to
// 2 MiB; best fit within a stream; split when the rest is worth it; merged when freed.
#pragma once

#include "flavour.h"

#include <c10/core/CachingDeviceAllocator.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace lowtide_sim {

using c10::CachingDeviceAllocator::DeviceStats;

struct Block {
  char* address;
  size_t size;
  int64_t stream;  // the stream it was allocated on: only that one may reuse it
  bool small;
  bool in_use = false;  // allocated, or freed but held for another stream
  size_t requested = 0;
  Block* previous = nullptr;  // neighbours in the same segment
  Block* next = nullptr;
  std::set<int64_t> recorded;  // other streams that use it (record_stream)
};

struct BlockInfo {
  uintptr_t segment, address;
  size_t size;
  int64_t stream;
  bool small;
  const char* state;  // "allocated", "held" (for a recorded stream) or "free"
};

class Arena {
 public:
  static constexpr int64_t kAllStreams = -1;

  // Memory of at least `bytes`, nullptr for 0. Raises torch.OutOfMemoryError with the sizes.
  void* allocate(size_t bytes);
  // False when the address is not a live allocation of this arena.
  bool free(void* address);
  // A stream other than the block's own uses it: after free it waits for that stream.
  void record(void* address, int64_t stream);
  // A stream (or all) was waited for: blocks held for it alone become free.
  void finish(int64_t stream);
  // Give segments without a block in use back to the host; implies waiting for all streams.
  void release_cached();

  size_t capacity() const;
  size_t free_bytes() const;  // capacity - overhead - reserved, what a driver would report
  void set_capacity(size_t bytes);
  DeviceStats stats() const;
  void reset_peaks();
  // Peaks allocated and reserved since the last `watch`, which no reset of the statistics touches.
  void watch();
  std::pair<size_t, size_t> watched() const;
  void reset_accumulated();
  std::string peak_op() const;
  bool contains(const void* address) const;
  std::vector<BlockInfo> snapshot() const;

  c10::DeviceIndex index = 0;

 private:
  struct BySize {
    bool operator()(const Block* a, const Block* b) const;
  };

  Block* take_cached(const Block& key);
  Block* new_segment(size_t size, bool small);
  void split(Block* block, size_t size);
  void recycle(Block* block);
  void merge_neighbour(Block* block, Block* neighbour);
  void release_cached_locked();
  void finish_locked(int64_t stream);
  size_t free_bytes_locked() const;
  [[noreturn]] void out_of_memory(size_t bytes, bool injected);

  mutable std::mutex mutex_;
  size_t capacity_ = size_t(8) << 30;
  size_t reserved_ = 0;
  std::set<Block*, BySize> pools_[2];  // [small]: free blocks
  std::unordered_map<void*, Block*> live_;
  std::vector<Block*> held_;
  std::map<char*, Block*> segments_;  // first block of each
  DeviceStats stats_;
  std::string peak_op_;
  size_t watched_allocated_ = 0, watched_reserved_ = 0;
};

// Settings of all arenas.
struct ArenaSettings {
  std::atomic<size_t> overhead{0};           // bytes a context takes beside the allocator
  std::atomic<bool> poison{false};           // fill fresh and freed memory with 0xFF
  std::atomic<bool> keep_pages{false};       // released segments keep their host memory
  std::atomic<bool> hold_recorded{true};     // false: record_stream never delays a free
  std::atomic<int64_t> fail_countdown{0};    // n: the n-th allocation from now fails; 0: none
  std::atomic<int64_t> shrink_countdown{0};  // n: the n-th allocation from now finds shrink_to
  std::atomic<size_t> shrink_to{0};          // bytes of capacity from then on
};

ArenaSettings& arena_settings();
Arena& arena(int index);
// Frees device memory of any arena: the deleter of every device DataPtr.
void arena_free(void* address);
// The device that holds an address; -1 for host memory.
c10::DeviceIndex arena_of(const void* address);

}  // namespace lowtide_sim
