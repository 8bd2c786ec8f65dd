// The compiled core as a Python module; control.py and device_module.py give it a face.
#include "arena.h"
#include "context.h"
#include "counters.h"
#include "kernels.h"
#include "memory.h"
#include "pages.h"
#include "runtime.h"

#include <torch/csrc/utils/pybind.h>

namespace py = pybind11;

namespace lowtide_sim {

namespace {

// The keys of torch.cuda.memory_stats.
py::dict stats_of(int64_t index) {
  const DeviceStats stats = arena(checked_index(index)).stats();
  py::dict all;
  const auto put = [&all](const std::string& name, const c10::CachingAllocator::StatArray& array) {
    const char* pools[3] = {"all", "small_pool", "large_pool"};
    for (int pool = 0; pool < 3; pool++) {
      const std::string prefix = name + "." + pools[pool] + ".";
      all[py::str(prefix + "current")] = array[pool].current;
      all[py::str(prefix + "peak")] = array[pool].peak;
      all[py::str(prefix + "allocated")] = array[pool].allocated;
      all[py::str(prefix + "freed")] = array[pool].freed;
    }
  };
  put("allocation", stats.allocation);
  put("segment", stats.segment);
  put("active", stats.active);
  put("inactive_split", stats.inactive_split);
  put("allocated_bytes", stats.allocated_bytes);
  put("reserved_bytes", stats.reserved_bytes);
  put("active_bytes", stats.active_bytes);
  put("inactive_split_bytes", stats.inactive_split_bytes);
  put("requested_bytes", stats.requested_bytes);
  all["num_alloc_retries"] = stats.num_alloc_retries;
  all["num_ooms"] = stats.num_ooms;
  all["num_device_alloc"] = stats.num_device_alloc;
  all["num_device_free"] = stats.num_device_free;
  return all;
}

py::dict counters_dict() {
  py::dict all;
#define LOWTIDE_SIM_PUT(name) all[#name] = counters().name.load();
  LOWTIDE_SIM_COUNTERS(LOWTIDE_SIM_PUT)
#undef LOWTIDE_SIM_PUT
  all["pinned"] = pinned_bytes();
  all["pinned_peak"] = pinned_peak();
  return all;
}

py::list snapshot_of(int64_t index) {
  py::list blocks;
  for (const auto& block : arena(checked_index(index)).snapshot()) {
    py::dict entry;
    entry["segment"] = block.segment;
    entry["address"] = block.address;
    entry["size"] = block.size;
    entry["stream"] = block.stream;
    entry["pool"] = block.small ? "small" : "large";
    entry["state"] = block.state;
    blocks.append(entry);
  }
  return blocks;
}

void* pointer(int64_t address) {
  return reinterpret_cast<void*>(static_cast<uintptr_t>(address));
}

}  // namespace

}  // namespace lowtide_sim

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace lowtide_sim;
  m.def("init", [] {
    static bool done = false;
    if (!done) initialize();
    done = true;
  });
  m.def("register_boxed", &register_boxed);

  m.def("device_count", &device_count);
  m.def("set_device_count", &set_device_count);
  m.def("current_device", [] { return static_cast<int>(context().device); });
  m.def("set_device", [](int64_t index) { context().device = checked_index(index); });
  m.def("synchronize", [](int64_t index) {
    counters().syncs++;
    arena(checked_index(index)).finish(Arena::kAllStreams);
  });
  m.def("current_stream_id", [](int64_t index) { return context().streams[checked_index(index)]; });
  m.def("set_stream", [](int64_t index, int64_t id) { context().streams[checked_index(index)] = id; });
  m.def("new_generator", [](int64_t index) { return new_generator(index); });
  m.def("default_generator", [](int64_t index) { return default_generator(index); });

  m.def("mem_info", [](int64_t index) { return device_allocator().getMemoryInfo(index); });
  m.def("empty_cache", [] { device_allocator().emptyCache(); });
  m.def("stats", &stats_of);
  m.def("snapshot", &snapshot_of);
  m.def("reset_peaks", [](int64_t index) { arena(checked_index(index)).reset_peaks(); });
  m.def("watch", [](int64_t index) { arena(checked_index(index)).watch(); });
  m.def("watched", [](int64_t index) { return arena(checked_index(index)).watched(); });
  m.def("reset_accumulated", [](int64_t index) { arena(checked_index(index)).reset_accumulated(); });
  m.def("peak_op", [](int64_t index) { return arena(checked_index(index)).peak_op(); });

  // All eight arenas have a capacity, also those beyond the device count.
  m.def("set_capacity", [](int64_t index, int64_t bytes) {
    TORCH_CHECK(index >= 0 && index < kMaxDevices && bytes > 0, "bad index or capacity");
    arena(index).set_capacity(bytes);
  });
  m.def("set_overhead", [](int64_t bytes) { arena_settings().overhead = bytes; });
  m.def("set_poison", [](bool on) { arena_settings().poison = on; });
  m.def("set_keep_pages", [](bool on) {
    arena_settings().keep_pages = on;
    if (!on) drop_pages();
  });
  m.def("set_hold_recorded", [](bool on) { arena_settings().hold_recorded = on; });
  m.def("fail_allocation", [](int64_t n) { arena_settings().fail_countdown = n > 0 ? n : 0; });
  m.def("shrink_at", [](int64_t n, int64_t bytes) {
    arena_settings().shrink_to = static_cast<size_t>(bytes);
    arena_settings().shrink_countdown = n > 0 ? n : 0;
  });

  m.def("counters", &counters_dict);
  m.def("reset_counters", [] {
    counters().reset();
    reset_pinned_peak();
    reset_operator_counts();
  });
  m.def("op_counts", &operator_counts);

  m.def("host_register", [](int64_t address, int64_t bytes) { return host_register(pointer(address), bytes); });
  m.def("host_unregister", [](int64_t address) { return host_unregister(pointer(address)); });
}
