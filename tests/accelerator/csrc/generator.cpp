#include "context.h"
#include "runtime.h"

#include <ATen/CPUGeneratorImpl.h>

#include <array>

namespace lowtide_sim {

namespace {

struct DeviceGenerator final : c10::GeneratorImpl {
  at::Generator inner;

  DeviceGenerator(c10::DeviceIndex index, at::Generator wrapped)
      : c10::GeneratorImpl(device_at(index), c10::DispatchKeySet(kDispatchKey)), inner(std::move(wrapped)) {}

  void set_current_seed(uint64_t seed) override {
    inner.set_current_seed(seed);
  }
  uint64_t current_seed() const override {
    return inner.current_seed();
  }
  uint64_t seed() override {
    return inner.seed();
  }
  // The CPU's engine has no offset; a GPU's does.
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override {
    return 0;
  }
  void set_state(const c10::TensorImpl& state) override {
    inner.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return inner.unsafeGetGeneratorImpl()->get_state();
  }
  DeviceGenerator* clone_impl() const override {
    return new DeviceGenerator(device().index(), inner.clone());
  }
};

}  // namespace

at::Generator new_generator(c10::DeviceIndex index) {
  return at::make_generator<DeviceGenerator>(checked_index(index), at::detail::createCPUGenerator());
}

const at::Generator& default_generator(c10::DeviceIndex index) {
  static auto* all = [] {
    auto* generators = new std::array<at::Generator, kMaxDevices>();
    for (int i = 0; i < kMaxDevices; i++)
      (*generators)[i] = at::make_generator<DeviceGenerator>(
          static_cast<c10::DeviceIndex>(i), at::detail::createCPUGenerator());
    return generators;
  }();
  return (*all)[checked_index(index)];
}

at::Generator cpu_generator(const at::Generator& generator) {
  return static_cast<DeviceGenerator*>(generator.unsafeGetGeneratorImpl())->inner;
}

}  // namespace lowtide_sim
