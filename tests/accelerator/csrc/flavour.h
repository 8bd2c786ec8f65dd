// What differs between the two flavours of the simulated accelerator, and nothing else.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/DispatchKey.h>

#include <string>

namespace lowtide_sim {

#if defined(LOWTIDE_SIM_CUDA)
constexpr auto kDeviceType = c10::DeviceType::CUDA;
constexpr auto kDispatchKey = c10::DispatchKey::CUDA;
constexpr const char* kDeviceName = "cuda";
constexpr const char* kVendorName = "CUDA";
#elif defined(LOWTIDE_SIM_NPU)
constexpr auto kDeviceType = c10::DeviceType::PrivateUse1;
constexpr auto kDispatchKey = c10::DispatchKey::PrivateUse1;
constexpr const char* kDeviceName = "npu";
constexpr const char* kVendorName = "NPU";
#else
#error "compile with -DLOWTIDE_SIM_NPU=1 or -DLOWTIDE_SIM_CUDA=1"
#endif

constexpr int kMaxDevices = 8;

inline c10::Device device_at(c10::DeviceIndex index) {
  return c10::Device(kDeviceType, index);
}

inline std::string device_text(c10::Device device) {
  if (device.is_cpu()) return "cpu";
  return std::string(kDeviceName) + ":" + std::to_string(static_cast<int>(device.index()));
}

}  // namespace lowtide_sim
