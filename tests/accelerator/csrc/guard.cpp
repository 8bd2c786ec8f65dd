// Devices, streams and events. Work is synchronous: a stream only says which memory may be reused
// when, and an event is a moment of the host's clock.
#include "arena.h"
#include "context.h"
#include "counters.h"
#include "runtime.h"

#include <chrono>
#include <memory>

namespace lowtide_sim {

namespace {

using Clock = std::chrono::steady_clock;

struct EventState {
  c10::DeviceIndex device;
  int64_t stream;
  Clock::time_point recorded;
};

std::atomic<int64_t> g_next_stream{1};  // 0 is every device's default stream

c10::Stream stream_of(c10::DeviceIndex index, int64_t id) {
  return c10::Stream(c10::Stream::UNSAFE, device_at(index), id);
}

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override {
    return kDeviceType;
  }
  c10::DeviceIndex deviceCount() const noexcept override {
    return static_cast<c10::DeviceIndex>(device_count());
  }
  c10::Device getDevice() const override {
    return device_at(context().device);
  }
  c10::Device exchangeDevice(c10::Device device) const override {
    auto before = getDevice();
    setDevice(device);
    return before;
  }
  void setDevice(c10::Device device) const override {
    context().device = checked_index(device.index());
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.index() >= 0) context().device = device.index();
  }

  c10::Stream getStream(c10::Device device) const override {
    const auto index = checked_index(device.index());
    return stream_of(index, context().streams[index]);
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return stream_of(checked_index(device.index()), 0);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return stream_of(checked_index(device.index()), g_next_stream++);
  }
  c10::Stream getNewStream(c10::Device device, int) const override {
    return stream_of(checked_index(device.index()), g_next_stream++);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    auto before = stream_of(stream.device_index(), context().streams[stream.device_index()]);
    context().streams[stream.device_index()] = stream.id();
    return before;
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override {
    return reinterpret_cast<void*>(stream.id());
  }
  bool queryStream(const c10::Stream&) const override {
    return true;
  }
  bool isStreamCapturing(const c10::Stream&) const override {
    return false;
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    counters().syncs++;
    arena(stream.device_index()).finish(stream.id());
  }
  void synchronizeDevice(const c10::DeviceIndex index) const override {
    counters().syncs++;
    arena(checked_index(index)).finish(Arena::kAllStreams);
  }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex, const c10::EventFlag)
      const override {
    if (!*event) *event = new EventState();
    *static_cast<EventState*>(*event) = {stream.device_index(), stream.id(), Clock::now()};
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override {
    return true;
  }
  void synchronizeEvent(void* event) const override {
    counters().syncs++;
    if (!event) return;
    const auto& state = *static_cast<EventState*>(event);
    arena(state.device).finish(state.stream);
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<EventState*>(event);
  }
  double elapsedTime(void* first, void* second, const c10::DeviceIndex) const override {
    TORCH_CHECK(first && second, "both events must be recorded before calculating elapsed time");
    const auto span = static_cast<EventState*>(second)->recorded - static_cast<EventState*>(first)->recorded;
    return std::chrono::duration<double, std::milli>(span).count();
  }

  void recordDataPtrOnStream(const c10::DataPtr& memory, const c10::Stream& stream) const override {
    if (memory.get()) arena(memory.device().index()).record(memory.get(), stream.id());
  }
};

}  // namespace

const c10::impl::DeviceGuardImplInterface* make_guard() {
  return new Guard();
}

}  // namespace lowtide_sim
