// Simulated accelerator: PrivateUse1 backend over host memory, with a counted, capacity-limited caching allocator.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/set_native.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>
#include <torch/library.h>
#include <sys/mman.h>
#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>

namespace sim {
using at::Tensor; using at::IValue;
using c10::CachingDeviceAllocator::DeviceStats;
#ifdef LOWTIDE_SIM_CUDA
constexpr auto kDev = c10::DeviceType::CUDA; constexpr auto kKey = c10::DispatchKey::CUDA;
#define SIM_NAME "cuda"
#define SIM_UPPER "CUDA"
#else
constexpr auto kDev = c10::DeviceType::PrivateUse1; constexpr auto kKey = c10::DispatchKey::PrivateUse1;
#define SIM_NAME "npu"
#define SIM_UPPER "NPU"
#endif
constexpr size_t kMinBlock = 512, kSmall = 1 << 20, kSmallBuf = 2 << 20, kLargeBuf = 20 << 20, kMinLarge = 10 << 20, kRoundLarge = 2 << 20;

thread_local int t_in_kernel = 0;        // >0: CPU allocations go to the device arena
thread_local int64_t t_stream = 0;       // current stream id
thread_local const std::string* t_op = nullptr;
std::atomic<int64_t> next_stream{1};
bool count_temps = false, hold_recorded = true, poison = false;

struct Block { char* ptr; size_t size, req; int64_t stream; bool small, used = false; Block *prev = nullptr, *next = nullptr; std::set<int64_t> uses; };
struct Less { bool operator()(const Block* a, const Block* b) const {
  if (a->stream != b->stream) return a->stream < b->stream;
  if (a->size != b->size) return a->size < b->size; return a->ptr < b->ptr; } };

struct Counters { int64_t h2d = 0, h2d_pinned = 0, d2h = 0, d2d = 0, h2d_n = 0, d2h_n = 0, d2d_n = 0, allocs = 0, syncs = 0, item_syncs = 0, ops = 0, ooms = 0, retries = 0, peak_at_op_end = 0; } C;
std::mutex cm;

struct Arena {
  std::recursive_mutex m;
  size_t capacity = size_t(8) << 30, overhead = 0, reserved = 0, limit = SIZE_MAX;
  std::set<Block*, Less> pool[2];                 // [small]
  std::unordered_map<void*, Block*> live;
  std::map<char*, size_t> segs;
  std::vector<Block*> held;                       // freed but still "used" by a side stream
  DeviceStats st;
  std::string peak_op; int64_t peak_live = 0; std::vector<std::pair<std::string,int64_t>> trace; bool tracing = false;
  int64_t fail_after = -1;                        // fault injection: OOM on the n-th allocation

  void inc(c10::CachingAllocator::StatArray& a, size_t n, bool small) { a[0].increase(n); a[small ? 1 : 2].increase(n); }
  void dec(c10::CachingAllocator::StatArray& a, size_t n, bool small) { a[0].decrease(n); a[small ? 1 : 2].decrease(n); }

  char* seg_alloc(size_t n) {
    if (overhead + reserved + n > capacity || reserved + n > limit) return nullptr;
    void* p = mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TORCH_CHECK(p != MAP_FAILED, "sim: host mmap failed");
    reserved += n; segs[(char*)p] = n; st.num_device_alloc++; if (poison) memset(p, 0xFF, n); return (char*)p;
  }
  void release_cached() {
    drain(-1);
    for (int s = 0; s < 2; s++)
      for (auto it = pool[s].begin(); it != pool[s].end();) {
        Block* b = *it;
        if (!b->prev && !b->next) {
          it = pool[s].erase(it); munmap(b->ptr, b->size); segs.erase(b->ptr); reserved -= b->size;
          dec(st.reserved_bytes, b->size, s); dec(st.segment, 1, s); st.num_device_free++; delete b;
        } else ++it;
      }
  }
  void* alloc(size_t req) {
    std::lock_guard<std::recursive_mutex> g(m);
    if (req == 0) return nullptr;
    size_t size = (req + kMinBlock - 1) / kMinBlock * kMinBlock; bool small = size <= kSmall;
    size_t want = small ? kSmallBuf : size < kMinLarge ? kLargeBuf : (size + kRoundLarge - 1) / kRoundLarge * kRoundLarge;
    Block key{nullptr, size, 0, t_stream, small}; Block* b = nullptr;
    bool inject = fail_after >= 0 && fail_after-- == 0;
    for (int attempt = 0; attempt < 2 && !b && !inject; attempt++) {
      auto it = pool[small].lower_bound(&key);
      if (it != pool[small].end() && (*it)->stream == t_stream) { b = *it; pool[small].erase(it); break; }
      if (char* p = seg_alloc(want)) {
        b = new Block{p, want, 0, t_stream, small}; inc(st.reserved_bytes, want, small); inc(st.segment, 1, small); break;
      }
      if (attempt == 0) { st.num_alloc_retries++; C.retries++; release_cached(); }
    }
    if (!b) {
      st.num_ooms++; C.ooms++;
      auto mb = [](size_t n) { return std::to_string(n >> 20) + " MiB"; };
      TORCH_CHECK_WITH(OutOfMemoryError, false, SIM_UPPER " out of memory. Tried to allocate ", mb(req), ". " SIM_UPPER " 0 has a total capacity of ", mb(capacity),
        " of which ", mb(capacity - overhead - reserved), " is free. Of the allocated memory ", mb(st.allocated_bytes[0].current), " is allocated by PyTorch, and ",
        mb(reserved - st.allocated_bytes[0].current), " is reserved by PyTorch but unallocated. [simulated", t_op ? ", in " + *t_op : std::string(), inject ? ", injected]" : "]");
    }
    size_t rest = b->size - size;
    if (small ? rest >= kMinBlock : rest > kSmall) {
      Block* r = new Block{b->ptr + size, rest, 0, b->stream, small}; r->prev = b; r->next = b->next; if (b->next) b->next->prev = r; b->next = r; b->size = size;
      pool[small].insert(r);
    }
    C.allocs++; b->used = true; b->req = req; live[b->ptr] = b;
    inc(st.allocation, 1, small); inc(st.allocated_bytes, b->size, small); inc(st.active, 1, small); inc(st.active_bytes, b->size, small); inc(st.requested_bytes, req, small);
    if (st.allocated_bytes[0].current >= peak_live) { peak_live = st.allocated_bytes[0].current; if (t_op) peak_op = *t_op; else peak_op = "aten::empty"; }
    if (!t_in_kernel) op_end();
    if (tracing) trace.emplace_back(t_op ? *t_op : "(alloc)", b->size);
    return b->ptr;
  }
  void op_end() { if (st.allocated_bytes[0].current > C.peak_at_op_end) C.peak_at_op_end = st.allocated_bytes[0].current; }
  bool owns(void* p) { std::lock_guard<std::recursive_mutex> g(m); return live.count(p); }
  bool contains(const void* p) { std::lock_guard<std::recursive_mutex> g(m); auto it = segs.upper_bound((char*)p); if (it == segs.begin()) return false; --it; return (char*)p < it->first + it->second; }
  bool free(void* p) {
    std::lock_guard<std::recursive_mutex> g(m);
    auto it = live.find(p); if (it == live.end()) return false;
    Block* b = it->second; live.erase(it); b->used = false;
    dec(st.allocation, 1, b->small); dec(st.allocated_bytes, b->size, b->small); dec(st.requested_bytes, b->req, b->small);
    if (tracing) trace.emplace_back("free", -(int64_t)b->size);
    if (poison) memset(b->ptr, 0xFF, b->size);     // NaN in fp16/bf16/fp32
    if (hold_recorded && !b->uses.empty()) { b->used = true; held.push_back(b); return true; }
    recycle(b); return true;
  }
  void recycle(Block* b) {
    b->used = false; b->uses.clear();
    dec(st.active, 1, b->small); dec(st.active_bytes, b->size, b->small);
    for (int side = 0; side < 2; side++) {
      Block* o = side ? b->next : b->prev;
      if (!o || o->used) continue;
      pool[b->small].erase(o);
      if (side) { b->next = o->next; if (o->next) o->next->prev = b; } else { b->ptr = o->ptr; b->prev = o->prev; if (o->prev) o->prev->next = b; }
      b->size += o->size; delete o;
    }
    pool[b->small].insert(b);
  }
  void drain(int64_t stream) {                     // stream -1: device synchronize
    std::lock_guard<std::recursive_mutex> g(m);
    std::vector<Block*> keep, go;
    for (auto* b : held) { if (stream < 0) b->uses.clear(); else b->uses.erase(stream); (b->uses.empty() ? go : keep).push_back(b); }
    held = keep; for (auto* b : go) recycle(b);
  }
  void record(void* p, int64_t s) { std::lock_guard<std::recursive_mutex> g(m); auto it = live.find(p); if (it != live.end() && it->second->stream != s) it->second->uses.insert(s); }
} A;

// ---------- allocators ----------
c10::Allocator* orig_cpu = nullptr;
void dev_free(void* p) { if (p) A.free(p); }
void any_free(void* p) { if (p && !A.free(p)) orig_cpu->raw_deleter()(p); }

struct DevAlloc final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t n) override { void* p = A.alloc(n); return {p, p, &dev_free, c10::Device(kDev, 0)}; }
  c10::DeleterFnPtr raw_deleter() const override { return &dev_free; }
  void copy_data(void* d, const void* s, size_t n) const override { memcpy(d, s, n); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t = {0, 0}) override { std::lock_guard<std::recursive_mutex> g(A.m); A.release_cached(); }
  void recordStream(const c10::DataPtr& p, c10::Stream s) override { A.record(p.get(), s.id()); }
  DeviceStats getDeviceStats(c10::DeviceIndex) override { std::lock_guard<std::recursive_mutex> g(A.m); return A.st; }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex) override {
    std::lock_guard<std::recursive_mutex> g(A.m); auto& s = A.st;
    for (auto* a : {&s.allocation, &s.segment, &s.active, &s.allocated_bytes, &s.reserved_bytes, &s.active_bytes, &s.requested_bytes}) for (auto& x : *a) x.reset_peak();
    A.peak_live = s.allocated_bytes[0].current; A.peak_op = ""; C.peak_at_op_end = A.peak_live;
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex) override { std::lock_guard<std::recursive_mutex> g(A.m); size_t u = A.overhead + A.reserved; return {A.capacity > u ? A.capacity - u : 0, A.capacity}; }
} dev_alloc;

struct CpuHook final : c10::Allocator {              // replaces the CPU allocator process-wide
  c10::DataPtr allocate(size_t n) override {
    if (t_in_kernel && n) { void* p = A.alloc(n); return {p, p, &any_free, c10::Device(c10::kCPU)}; }
    return orig_cpu->allocate(n);
  }
  c10::DeleterFnPtr raw_deleter() const override { return &any_free; }
  bool is_simple_data_ptr(const c10::DataPtr& d) const override { return d.get() == d.get_context(); }
  void copy_data(void* d, const void* s, size_t n) const override { memcpy(d, s, n); }
} cpu_hook;

std::mutex pin_m; std::map<char*, size_t> pinned; int64_t pin_cur = 0, pin_peak = 0;
void pin_free(void* p) { if (!p) return; std::lock_guard<std::mutex> g(pin_m); auto it = pinned.find((char*)p); if (it != pinned.end()) { pin_cur -= it->second; pinned.erase(it); } ::free(p); }
struct PinAlloc final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    void* p = nullptr; if (n) { TORCH_CHECK(!posix_memalign(&p, 4096, n)); std::lock_guard<std::mutex> g(pin_m); pinned[(char*)p] = n; pin_cur += n; pin_peak = std::max(pin_peak, pin_cur); }
    return {p, p, &pin_free, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &pin_free; }
  void copy_data(void* d, const void* s, size_t n) const override { memcpy(d, s, n); }
} pin_alloc;
bool is_pinned(const void* p) { std::lock_guard<std::mutex> g(pin_m); auto it = pinned.upper_bound((char*)p); if (it == pinned.begin()) return false; --it; return (char*)p < it->first + it->second; }

// ---------- generator, guard, hooks ----------
struct Gen final : c10::GeneratorImpl {
  at::Generator in;
  explicit Gen(uint64_t seed = 67280421310721) : c10::GeneratorImpl(c10::Device(kDev, 0), c10::DispatchKeySet(kKey)), in(at::detail::createCPUGenerator(seed)) {}
  void set_current_seed(uint64_t s) override { in.set_current_seed(s); }
  void set_offset(uint64_t) override {} uint64_t get_offset() const override { return 0; }
  uint64_t current_seed() const override { return in.current_seed(); }
  uint64_t seed() override { return in.seed(); }
  void set_state(const c10::TensorImpl& s) override { in.unsafeGetGeneratorImpl()->set_state(s); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return in.unsafeGetGeneratorImpl()->get_state(); }
  GeneratorImpl* clone_impl() const override { auto* g = new Gen(); g->in = in.clone(); return g; }
};
at::Generator& default_gen() { static at::Generator g = at::make_generator<Gen>(); return g; }

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::Device d() const { return c10::Device(kDev, 0); }
  c10::DeviceType type() const override { return kDev; }
  c10::Device exchangeDevice(c10::Device) const override { return d(); }
  c10::Device getDevice() const override { return d(); }
  void setDevice(c10::Device x) const override { TORCH_CHECK(x.index() <= 0, "invalid device ordinal"); }
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream mk(int64_t id) const { return c10::Stream(c10::Stream::UNSAFE, d(), id); }
  c10::Stream getStream(c10::Device) const override { return mk(t_stream); }
  c10::Stream getDefaultStream(c10::Device) const override { return mk(0); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return mk(next_stream++); }
  c10::Stream getNewStream(c10::Device, int) const override { return mk(next_stream++); }
  c10::Stream exchangeStream(c10::Stream s) const override { auto o = mk(t_stream); t_stream = s.id(); return o; }
  void* getStreamNativeHandle(const c10::Stream s) const override { return (void*)s.id(); }
  void destroyEvent(void* e, c10::DeviceIndex) const noexcept override { delete (int64_t*)e; }
  void record(void** e, const c10::Stream& s, c10::DeviceIndex, c10::EventFlag) const override { if (!*e) *e = new int64_t; *(int64_t*)*e = s.id(); }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream& s) const override { C.syncs++; A.drain(s.id()); }
  void synchronizeEvent(void* e) const override { C.syncs++; if (e) A.drain(*(int64_t*)e); }
  void synchronizeDevice(c10::DeviceIndex) const override { C.syncs++; A.drain(-1); }
  void recordDataPtrOnStream(const c10::DataPtr& p, const c10::Stream& s) const override { A.record(p.get(), s.id()); }
  double elapsedTime(void*, void*, c10::DeviceIndex) const override { return 0.0; }
};

#ifndef LOWTIDE_SIM_CUDA
struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return default_gen(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<Gen>(); }
  at::Device getDeviceFromPtr(void* p) const override { return A.contains(p) ? at::Device(kDev, 0) : at::Device(at::kCPU); }
  bool isPinnedPtr(const void* p) const override { return is_pinned(p); }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pin_alloc; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  void init() const override {}
  c10::DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  void resizePrivateUse1Bytes(const c10::Storage& s, size_t n) const override {
    auto* si = s.unsafeGetStorageImpl(); auto p = dev_alloc.allocate(n);
    if (n && si->nbytes()) memcpy(p.get(), si->data(), std::min(n, si->nbytes()));
    si->set_data_ptr_noswap(std::move(p)); si->set_nbytes(n);
  }
};

#endif
// ---------- aliasing ----------
bool dev(const Tensor& t) { return t.defined() && t.device().type() == kDev; }
using SP = c10::intrusive_ptr<c10::StorageImpl>;
void sp_free(void* c) { delete static_cast<SP*>(c); }
struct Ctx {
  std::vector<std::pair<SP, SP>> st;                 // cpu, dev
  std::vector<std::pair<Tensor, Tensor>> tn;         // alias, original
  Tensor alias(const Tensor& t) {
    if (!dev(t)) return t;
    SP d = SP::reclaim_copy(t.storage().unsafeGetStorageImpl()), c;
    for (auto& p : st) if (p.second == d) c = p.first;
    if (!c) {
      c = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), d->nbytes(), c10::DataPtr(d->mutable_data(), new SP(d), &sp_free, c10::Device(c10::kCPU)), &cpu_hook, true);
      st.emplace_back(c, d);
    }
    Tensor a = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(c), c10::DispatchKeySet(c10::DispatchKey::CPU), t.dtype());
    a.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
    if (t.unsafeGetTensorImpl()->is_wrapped_number()) a.unsafeGetTensorImpl()->set_wrapped_number(true);
    tn.emplace_back(a, t); return a;
  }
  void sync() {                                      // storages / shapes changed by resize_ and out= kernels
    for (auto& p : st) if (p.first->data() != p.second->data()) {
      size_t n = p.first->nbytes(); c10::DataPtr dp = p.first->set_data_ptr(c10::DataPtr());
      SP keep = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), n, std::move(dp), &cpu_hook, false);
      void* ptr = keep->mutable_data();
      p.second->set_data_ptr_noswap(c10::DataPtr(ptr, new SP(keep), &sp_free, c10::Device(kDev, 0))); p.second->set_nbytes(n);
    }
    for (auto& p : tn) if (p.first.sizes() != p.second.sizes() || p.first.strides() != p.second.strides())
      p.second.unsafeGetTensorImpl()->set_sizes_and_strides(p.first.sizes(), p.first.strides(), p.first.storage_offset());
  }
  Tensor back(const Tensor& r) {
    if (!r.defined() || !r.device().is_cpu()) return r;
    for (auto& p : tn) if (p.first.is_same(r)) return p.second;
    SP c = SP::reclaim_copy(r.storage().unsafeGetStorageImpl()), d;
    for (auto& p : st) if (p.first == c) d = p.second;
    if (!d) {
      c10::DataPtr dp;
      if (c->nbytes() == 0 || !c->data()) dp = c10::DataPtr(nullptr, c10::Device(kDev, 0));
      else if (A.owns(c->mutable_data())) dp = c10::DataPtr(c->mutable_data(), new SP(c), &sp_free, c10::Device(kDev, 0));
      else { dp = dev_alloc.allocate(c->nbytes()); memcpy(dp.get(), c->data(), c->nbytes()); }
      d = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), c->nbytes(), std::move(dp), &dev_alloc, true);
      st.emplace_back(c, d);
    }
    Tensor o = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(d), c10::DispatchKeySet(kKey), r.dtype());
    o.unsafeGetTensorImpl()->set_sizes_and_strides(r.sizes(), r.strides(), r.storage_offset());
    if (r.unsafeGetTensorImpl()->is_wrapped_number()) o.unsafeGetTensorImpl()->set_wrapped_number(true);
    return o;
  }
};
std::unordered_map<std::string, int64_t> op_counts; std::mutex ocm;
struct InKernel {
  const std::string* o; bool c; InKernel(const std::string& n, bool count = true) : o(t_op), c(count && count_temps) { if (!t_op) t_op = &n; if (c) t_in_kernel++; C.ops++; }
  ~InKernel() { if (c) t_in_kernel--; t_op = o; if (!t_op) A.op_end(); }
};

// CPU fp16 (and bf16 without AMX) gemm/conv can be >100x slower than fp32: compute these in fp32 host scratch (which also is what a GPU accumulates in)
bool half(const Tensor& t) { return t.defined() && (t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16); }
bool upcast_op(const std::string& n) { static const std::set<std::string> s{"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::addbmm", "aten::addmv", "aten::mv", "aten::dot", "aten::_addmm_activation", "aten::_scaled_dot_product_flash_attention_for_cpu"}; return s.count(n); }

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema(); const std::string& name = schema.name();
  { std::lock_guard<std::mutex> g(ocm); op_counts[schema.overload_name().empty() ? name : name + "." + schema.overload_name()]++; }
  size_t n = schema.arguments().size(), b = stack->size() - n; Ctx cx; Tensor cpu_arg; bool any = false;
  auto see = [&](const Tensor& t) { if (dev(t)) any = true; else if (t.defined() && t.dim() > 0 && !cpu_arg.defined()) cpu_arg = t; };
  std::vector<IValue> saved;                         // keeps the originals alive
  bool up = upcast_op(name); at::ScalarType low = at::kFloat; std::vector<std::pair<Tensor, Tensor>> wb;
  for (size_t i = 0; i < n; i++) {
    IValue& v = (*stack)[b + i]; saved.push_back(v);
    if (v.isTensor()) {
      Tensor t = v.toTensor(); see(t); Tensor a = cx.alias(t);
      if (up && half(a)) { at::AutoDispatchBelowADInplaceOrView g; low = a.scalar_type(); Tensor f = a.to(at::kFloat); auto* ai = schema.arguments()[i].alias_info(); if (ai && ai->isWrite()) { wb.emplace_back(f, a); cx.tn.emplace_back(f, t); } a = f; }
      v = a;
    }
    else if (v.isTensorList()) { c10::List<Tensor> l; for (const Tensor& t : v.toTensorVector()) { see(t); l.push_back(cx.alias(t)); } v = l; }
    else if (v.isOptionalTensorList()) { c10::List<std::optional<Tensor>> l; for (const auto& e : v.toOptionalTensorVector()) { if (e && e->defined()) { if (dev(*e)) any = true; l.push_back(cx.alias(*e)); } else l.push_back(e); } v = l; }
    else if (v.isDevice()) { if (v.toDevice().type() == kDev) { v = c10::Device(c10::kCPU); any = true; } }
    else if (v.isGenerator()) { auto g = v.toGenerator(); if (g.device().type() == kDev) v = static_cast<Gen*>(g.unsafeGetGeneratorImpl())->in; }
    else if (v.isNone() && schema.arguments()[i].name() == "generator") v = static_cast<Gen*>(default_gen().unsafeGetGeneratorImpl())->in;
  }
  TORCH_CHECK(!(any && cpu_arg.defined()), "Expected all tensors to be on the same device, but found at least two devices, " SIM_NAME ":0 and cpu! (when checking arguments for ", name, ")");
  { InKernel k(name, low == at::kFloat); at::AutoDispatchBelowADInplaceOrView g; op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack); for (auto& p : wb) p.second.copy_(p.first); }
  if (wb.empty()) cx.sync();
  size_t nr = schema.returns().size();
  if (low != at::kFloat && wb.empty()) { at::AutoDispatchBelowADInplaceOrView g; for (size_t i = stack->size() - nr; i < stack->size(); i++) { IValue& v = (*stack)[i]; if (v.isTensor() && v.toTensor().defined() && i == stack->size() - nr) v = v.toTensor().to(low); } }
  for (size_t i = stack->size() - nr; i < stack->size(); i++) {
    IValue& v = (*stack)[i];
    if (v.isTensor()) v = cx.back(v.toTensor());
    else if (v.isTensorList()) { c10::List<Tensor> l; for (const Tensor& t : v.toTensorVector()) l.push_back(cx.back(t)); v = l; }
  }
}

// ---------- explicit kernels ----------
Tensor empty_mf(c10::IntArrayRef size, std::optional<at::ScalarType> dt, std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> mf) {
  return at::detail::empty_generic(size, &dev_alloc, c10::DispatchKeySet(kKey), c10::dtype_or_default(dt), mf);
}
Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dt, std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &dev_alloc, c10::DispatchKeySet(kKey), c10::dtype_or_default(dt));
}
void raw_copy(const Tensor& src, const Tensor& dst) { static const std::string n = "copy"; Ctx cx; Tensor s = cx.alias(src), d = cx.alias(dst); InKernel k(n); at::AutoDispatchBelowADInplaceOrView g; d.copy_(s); }
Tensor copy_from(const Tensor& self, const Tensor& dst, bool nb) {
  if (dst.numel() == 0) return dst;
  bool sd = dev(self), dd = dev(dst);
  if (sd && dd) { C.d2d += dst.nbytes(); C.d2d_n++; raw_copy(self, dst); return dst; }
  bool plain = self.dtype() == dst.dtype() && self.sizes() == dst.sizes() && self.strides() == dst.strides() && self.is_non_overlapping_and_dense();
  if (!plain && !(self.dtype() == dst.dtype() && self.numel() == 1)) {   // same temporaries as aten/native/cuda/Copy.cu
    auto conv = nb ? kDev : c10::kCPU; Tensor dc, sc;
    if (self.device().type() == conv) {
      dc = dst.is_contiguous() ? dst : at::empty_like(dst, at::MemoryFormat::Contiguous);
      sc = self.to(dst.scalar_type()).expand_as(dst).contiguous();
    } else {
      bool same = self.dtype() == dst.dtype();
      dc = dst.is_contiguous() && same ? dst : at::empty_like(dst, dst.options().dtype(self.dtype()), at::MemoryFormat::Contiguous);
      sc = self.expand_as(dst).contiguous();
    }
    dc.copy_(sc, nb); if (!dc.is_same(dst)) dst.copy_(dc, nb);
    return dst;
  }
  int64_t n = dst.nbytes();
  if (dd) { C.h2d += n; C.h2d_n++; if (is_pinned(self.const_data_ptr())) C.h2d_pinned += n; } else { C.d2h += n; C.d2h_n++; }
  if (!nb) C.item_syncs++;
  raw_copy(self, dst); return dst;
}
Tensor copy_from_and_resize(const Tensor& self, const Tensor& dst) { if (dst.sizes() != self.sizes()) dst.resize_(self.sizes()); return copy_from(self, dst, false); }
at::Scalar local_scalar(const Tensor& t) { C.item_syncs++; C.d2h += t.element_size(); Ctx cx; return at::_local_scalar_dense(cx.alias(t)); }
bool compat(const Tensor&, const Tensor&) { return true; }
void record_stream(Tensor& t, c10::Stream s) { A.record(t.storage().mutable_data(), s.id()); }
Tensor as_strided(const Tensor& t, c10::IntArrayRef sz, c10::IntArrayRef st, std::optional<int64_t> off) { return at::native::as_strided_tensorimpl(t, sz, st, off); }
Tensor view(const Tensor& t, c10::IntArrayRef sz) { return at::native::view(t, sz); }
Tensor reshape_alias(const Tensor& t, c10::IntArrayRef sz, c10::IntArrayRef st) { return at::native::_reshape_alias(t, sz, st); }
Tensor& set_storage(Tensor& t, c10::Storage s, int64_t off, c10::IntArrayRef sz, c10::IntArrayRef st) {
  auto* i = t.unsafeGetTensorImpl(); i->set_storage_keep_dtype(std::move(s));
  if (st.data()) i->set_sizes_and_strides(sz, st, off); else { i->set_storage_offset(off); i->set_sizes_contiguous(sz); }
  return t;
}
Tensor& set_src(Tensor& t, c10::Storage s) { int64_t n = s.nbytes() / t.element_size(); return set_storage(t, s, 0, {n}, {1}); }
Tensor& set_tensor(Tensor& t, const Tensor& o) { return set_storage(t, o.storage(), o.storage_offset(), o.sizes(), o.strides()); }
Tensor conv(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b, c10::SymIntArrayRef st, c10::SymIntArrayRef pad, c10::SymIntArrayRef dil, bool tr, c10::SymIntArrayRef op, c10::SymInt groups) {
  static const std::string n = "aten::convolution";
  TORCH_CHECK(dev(x) && dev(w) && (!b || !b->defined() || dev(*b)), "Expected all tensors to be on the same device, but found at least two devices, " SIM_NAME ":0 and cpu! (convolution)");
  Ctx cx; Tensor r; bool h = half(x); auto f = [&](const Tensor& t) { auto a = cx.alias(t); return half(a) ? a.to(at::kFloat) : a; };
  { InKernel k(n, !h); at::AutoDispatchBelowADInplaceOrView g; std::optional<Tensor> bb; if (b && b->defined()) bb = f(*b); r = at::convolution_symint(f(x), f(w), bb, st, pad, dil, tr, op, groups); if (h) r = r.to(x.scalar_type()); }
  return cx.back(r);
}
int64_t sdp_choice(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& m, double p, bool causal, std::optional<double> scale, bool gqa) {
  Ctx cx; std::optional<Tensor> mm; if (m && m->defined()) mm = cx.alias(*m);
  return at::_fused_sdp_choice(cx.alias(q), cx.alias(k), cx.alias(v), mm, p, causal, scale, gqa);
}
std::vector<std::string> direct;

#ifdef LOWTIDE_SIM_CUDA
Tensor& copy_(Tensor& self, const Tensor& src, bool nb) { copy_from(src, self, nb); return self; }
Tensor sdpa(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& m, double p, bool causal, std::optional<double> scale, bool gqa) {
  static const std::string n = "aten::scaled_dot_product_attention"; Ctx cx; auto f = [&](const Tensor& t) { auto a = cx.alias(t); return half(a) ? a.to(at::kFloat) : a; }; Tensor r;
  { InKernel kk(n, false); at::AutoDispatchBelowADInplaceOrView g; std::optional<Tensor> mm; if (m && m->defined()) mm = m->scalar_type() == at::kBool ? cx.alias(*m) : f(*m);
    r = at::scaled_dot_product_attention(f(q), f(k), f(v), mm, p, causal, scale, gqa).to(q.scalar_type()); }
  return cx.back(r);
}
#else
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty_mf); m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from); m.impl("_copy_from_and_resize", copy_from_and_resize); m.impl("_local_scalar_dense", local_scalar);
  m.impl("_has_compatible_shallow_copy_type", compat); m.impl("record_stream", record_stream);
  m.impl("as_strided", as_strided); m.impl("view", view); m.impl("_reshape_alias", reshape_alias);
  m.impl("set_.source_Storage_storage_offset", set_storage); m.impl("set_.source_Storage", set_src); m.impl("set_.source_Tensor", set_tensor);
  m.impl("convolution_overrideable", conv); m.impl("_fused_sdp_choice", sdp_choice);
}
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

#endif
torch::Library* extra = nullptr;
void init() {
  static bool done = false; if (done) return; done = true;
#ifdef LOWTIDE_SIM_CUDA
  c10::SetAllocator(kDev, &dev_alloc, 255);
  c10::impl::registerDeviceGuard(kDev, new Guard());
  auto* m = new torch::Library(torch::Library::IMPL, "aten", std::make_optional(kKey), __FILE__, __LINE__);
  m->impl("empty.memory_format", empty_mf); m->impl("empty_strided", empty_strided); m->impl("copy_", copy_); m->impl("_local_scalar_dense", local_scalar);
  m->impl("record_stream", record_stream); m->impl("as_strided", as_strided); m->impl("view", view); m->impl("_reshape_alias", reshape_alias);
  m->impl("set_.source_Storage_storage_offset", set_storage); m->impl("set_.source_Storage", set_src); m->impl("set_.source_Tensor", set_tensor);
  m->impl("convolution", conv); m->impl("scaled_dot_product_attention", sdpa);
#else
  c10::SetAllocator(kDev, &dev_alloc);
  at::RegisterPrivateUse1HooksInterface(new Hooks());
#endif
  orig_cpu = c10::GetCPUAllocator(); c10::SetCPUAllocator(&cpu_hook, 255);
}
// ops with a fused CPU (and CUDA) kernel that PrivateUse1 would otherwise run through a CompositeExplicit decomposition
void direct_impl(const std::vector<std::string>& names) {
  extra = new torch::Library(torch::Library::IMPL, "aten", std::make_optional(kKey), __FILE__, __LINE__);
  for (auto& n : names) extra->impl(n.c_str(), torch::CppFunction::makeFromBoxedFunction<&fallback>());
}
} // namespace sim

#ifndef LOWTIDE_SIM_CUDA
namespace at::native { REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &sim::sdp_choice) }
#endif
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace sim;
  m.def("init", &init); m.def("new_generator", [](int64_t) { return at::make_generator<Gen>(); }); m.def("default_generator", [](int64_t) { return default_gen(); }); m.def("register_boxed", &direct_impl);
  m.def("stats", [](int64_t) { std::lock_guard<std::recursive_mutex> g(A.m); py::dict d; const char* pn[3] = {"all", "small_pool", "large_pool"};
    auto put = [&](const char* n, c10::CachingAllocator::StatArray& a) { for (int i = 0; i < 3; i++) { std::string k = std::string(n) + "." + pn[i]; d[(k + ".current").c_str()] = a[i].current; d[(k + ".peak").c_str()] = a[i].peak; d[(k + ".allocated").c_str()] = a[i].allocated; d[(k + ".freed").c_str()] = a[i].freed; } };
    put("allocated_bytes", A.st.allocated_bytes); put("reserved_bytes", A.st.reserved_bytes); put("requested_bytes", A.st.requested_bytes); put("active_bytes", A.st.active_bytes); put("allocation", A.st.allocation); put("segment", A.st.segment); d["num_ooms"] = A.st.num_ooms; d["num_alloc_retries"] = A.st.num_alloc_retries; return d; });
  m.def("set_device_count", [](int64_t n) { TORCH_CHECK(n == 1, "more than one device: not in this version"); }); m.def("device_count", [] { return 1; });
  m.def("current_device", [] { return 0; }); m.def("set_device", [](int64_t n) { TORCH_CHECK(n <= 0, "invalid device ordinal"); });
  m.def("mem_info", [](int64_t) { return dev_alloc.getMemoryInfo(0); }); m.def("empty_cache", [] { dev_alloc.emptyCache(); }); m.def("reset_peaks", [](int64_t) { dev_alloc.resetPeakStats(0); });
  m.def("synchronize", [](int64_t) { C.syncs++; A.drain(-1); });
  m.def("pin", [](const Tensor& t) { at::Tensor o = at::detail::empty_generic(t.sizes(), &pin_alloc, c10::DispatchKeySet(c10::DispatchKey::CPU), t.scalar_type(), std::nullopt); o.copy_(t); return o; });
  m.def("is_pinned", [](const Tensor& t) { return t.device().is_cpu() && is_pinned(t.const_data_ptr()); });
  m.def("host_register", [](int64_t p, int64_t n) { std::lock_guard<std::mutex> g(pin_m); pinned[(char*)p] = n; pin_cur += n; pin_peak = std::max(pin_peak, pin_cur); }); m.def("host_unregister", [](int64_t p) { std::lock_guard<std::mutex> g(pin_m); auto it = pinned.find((char*)p); if (it != pinned.end()) { pin_cur -= it->second; pinned.erase(it); } });
  m.def("set_capacity", [](int64_t, int64_t c) { A.capacity = c; }); m.def("set_overhead", [](int64_t c) { A.overhead = c; });
  m.def("set_poison", [](bool v) { poison = v; }); m.def("set_hold_recorded", [](bool v) { hold_recorded = v; }); m.def("fail_allocation", [](int64_t n) { A.fail_after = n < 0 ? -1 : n - 1; });
  m.def("peak_op", [](int64_t) { return A.peak_op; });
  m.def("set_stream", [](int64_t, int64_t s) { t_stream = s; }); m.def("current_stream_id", [](int64_t) { return t_stream; });
  m.def("counters", [] { py::dict d;
    d["h2d"] = C.h2d; d["h2d_calls"] = C.h2d_n; d["h2d_pinned"] = C.h2d_pinned; d["d2h"] = C.d2h; d["d2h_calls"] = C.d2h_n; d["d2d"] = C.d2d; d["d2d_calls"] = C.d2d_n;
    d["pinned"] = pin_cur; d["pinned_peak"] = pin_peak; d["syncs"] = C.syncs; d["implicit_syncs"] = C.item_syncs; d["allocations"] = C.allocs; d["ops"] = C.ops; d["ooms"] = C.ooms; d["retries"] = C.retries; return d; });
  m.def("reset_counters", [] { C = Counters(); pin_peak = pin_cur; });
  m.def("op_counts", [] { std::lock_guard<std::mutex> g(ocm); return op_counts; });
}
