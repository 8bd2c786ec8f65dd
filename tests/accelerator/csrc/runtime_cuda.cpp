// The cuda flavour: the CUDA dispatch key of a CUDA build, its kernels replaced by ours. The Python
// side (cuda.py) keeps torch from initialising the driver.
#include "alias.h"
#include "context.h"
#include "kernels.h"
#include "memory.h"
#include "runtime.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/library.h>

namespace lowtide_sim {

namespace {

using at::Tensor;

// In one piece, as the fused kernels of a GPU: the result is all it allocates.
Tensor attention(
    const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& mask, double dropout,
    bool causal, std::optional<double> scale, bool gqa) {
  OpScope scope("aten::scaled_dot_product_attention");
  DeviceCheck check("aten::scaled_dot_product_attention");
  check.see(query);
  check.see(key);
  check.see(value);
  check.see(mask);
  check.raise_if_mixed();
  Aliases aliases(check.index());
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  OptionalTensor cpu_mask;
  if (mask && mask->defined()) cpu_mask = aliases.to_cpu_float(*mask);
  const auto result = at::scaled_dot_product_attention(
      aliases.to_cpu_float(query), aliases.to_cpu_float(key), aliases.to_cpu_float(value), cpu_mask, dropout,
      causal, scale, gqa);
  return aliases.to_device(result.to(query.scalar_type()));
}

// torch asks the driver about a CPU tensor's memory; there is none.
bool cpu_is_pinned(const Tensor& tensor, std::optional<at::Device>) {
  return tensor.has_storage() && is_pinned(tensor.storage().data());
}

Tensor cpu_pin_memory(const Tensor& tensor, std::optional<at::Device>) {
  Tensor pinned = at::detail::empty_strided_generic(
      tensor.sizes(), tensor.strides(), &pinned_allocator(), c10::DispatchKeySet(c10::DispatchKey::CPU),
      tensor.scalar_type());
  pinned.copy_(tensor);
  return pinned;
}

torch::Library* library(c10::DispatchKey key) {
  return new torch::Library(torch::Library::IMPL, "aten", std::make_optional(key), __FILE__, __LINE__);
}

}  // namespace

void register_boxed(const std::vector<std::string>& operators) {
  auto& m = *library(kDispatchKey);
  for (const auto& name : operators)
    m.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&boxed_fallback>());
}

void initialize() {
  c10::impl::registerDeviceGuard(kDeviceType, make_guard());
  register_allocators();
  auto& m = *library(kDispatchKey);
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("copy_", copy_into);
  m.impl("_local_scalar_dense", local_scalar);
  m.impl("record_stream", record_stream);
  m.impl("as_strided", as_strided);
  m.impl("view", view);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("set_.source_Storage_storage_offset", set_storage_offset);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("convolution", convolution);
  m.impl("scaled_dot_product_attention", attention);
  auto& cpu = *library(c10::DispatchKey::CPU);
  cpu.impl("is_pinned", cpu_is_pinned);
  cpu.impl("_pin_memory", cpu_pin_memory);
}

}  // namespace lowtide_sim
