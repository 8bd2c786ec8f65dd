// What a flavour registers with torch beside kernels: guard, generators, hooks.
#pragma once

#include "flavour.h"

#include <ATen/core/Generator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <string>
#include <vector>

namespace lowtide_sim {

const c10::impl::DeviceGuardImplInterface* make_guard();

// A device generator draws the numbers the CPU's draws from the same seed.
at::Generator new_generator(c10::DeviceIndex index);
const at::Generator& default_generator(c10::DeviceIndex index);
// The CPU generator inside a generator of ours.
at::Generator cpu_generator(const at::Generator& generator);

// Registers everything of this flavour; once per process.
void initialize();
// Routes further operators ("group::name.overload" without the namespace) to the boxed fallback.
void register_boxed(const std::vector<std::string>& operators);

}  // namespace lowtide_sim
