// The npu flavour: PrivateUse1, torch's supported place for a device of one's own.
#include "alias.h"
#include "arena.h"
#include "context.h"
#include "kernels.h"
#include "memory.h"
#include "runtime.h"

#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_fused_sdp_choice.h>
#include <torch/library.h>

#include <cstring>

namespace lowtide_sim {

namespace {

class Hooks final : public at::PrivateUse1HooksInterface {
 public:
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return true;
  }
  bool hasPrimaryContext(c10::DeviceIndex) const override {
    return true;
  }
  void init() const override {}
  c10::DeviceIndex deviceCount() const override {
    return static_cast<c10::DeviceIndex>(device_count());
  }
  void setCurrentDevice(c10::DeviceIndex index) const override {
    context().device = checked_index(index);
  }
  c10::DeviceIndex getCurrentDevice() const override {
    return context().device;
  }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    const auto before = context().device;
    setCurrentDevice(index);
    return before;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return index < 0 ? context().device : exchangeDevice(index);
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override {
    return default_generator(index);
  }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override {
    return new_generator(index);
  }
  at::Device getDeviceFromPtr(void* address) const override {
    const auto index = arena_of(address);
    return index < 0 ? at::Device(at::kCPU) : device_at(index);
  }
  bool isPinnedPtr(const void* address) const override {
    return is_pinned(address);
  }
  at::Allocator* getPinnedMemoryAllocator() const override {
    return &pinned_allocator();
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto* impl = storage.unsafeGetStorageImpl();
    auto memory = allocate_on(impl->device().index(), bytes);
    if (bytes && impl->nbytes()) memcpy(memory.get(), impl->data(), std::min(bytes, impl->nbytes()));
    impl->set_data_ptr_noswap(std::move(memory));
    impl->set_nbytes(bytes);
  }
};

bool has_compatible_shallow_copy_type(const at::Tensor&, const at::Tensor&) {
  return true;
}

// Without it SDPA takes the path of single operators and allocates the whole attention matrix.
int64_t fused_sdp_choice(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const OptionalTensor& mask,
    double dropout, bool causal, std::optional<double> scale, bool gqa) {
  Aliases aliases(query.device().index());
  OptionalTensor cpu_mask;
  if (mask && mask->defined()) cpu_mask = aliases.to_cpu(*mask);
  return at::_fused_sdp_choice(
      aliases.to_cpu(query), aliases.to_cpu(key), aliases.to_cpu(value), cpu_mask, dropout, causal, scale, gqa);
}

torch::Library* library() {
  static auto* instance = new torch::Library(
      torch::Library::IMPL, "aten", std::make_optional(kDispatchKey), __FILE__, __LINE__);
  return instance;
}

}  // namespace

void register_boxed(const std::vector<std::string>& operators) {
  for (const auto& name : operators)
    library()->impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&boxed_fallback>());
}

void initialize() {
  c10::impl::registerDeviceGuard(kDeviceType, make_guard());
  register_allocators();
  at::RegisterPrivateUse1HooksInterface(new Hooks());
  static auto* everything =
      new torch::Library(torch::Library::IMPL, "_", std::make_optional(kDispatchKey), __FILE__, __LINE__);
  everything->fallback(torch::CppFunction::makeFromBoxedFunction<&boxed_fallback>());
  auto& m = *library();
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar);
  m.impl("_has_compatible_shallow_copy_type", has_compatible_shallow_copy_type);
  m.impl("record_stream", record_stream);
  m.impl("as_strided", as_strided);
  m.impl("view", view);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("set_.source_Storage_storage_offset", set_storage_offset);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("convolution_overrideable", convolution);
  m.impl("_fused_sdp_choice", fused_sdp_choice);
}

}  // namespace lowtide_sim

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &lowtide_sim::fused_sdp_choice)
}
