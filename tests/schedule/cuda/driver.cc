// A CUDA driver and runtime without a GPU: memory is the CPU's, device code a library made with emulator.h. Only what
// TVM's CUDA runtime and tvmq.gpu call. While a stream is captured, what CUDA refuses then fails here, too.
#include <dlfcn.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

typedef int (*Launch)(void**, unsigned*);

struct Function {
  Launch launch;
  unsigned arguments;
};

struct Config {
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  void* attributes;
  unsigned attribute_count;
};

struct Recorded {
  Launch launch;
  std::vector<uint64_t> values;
  unsigned extents[7];
};

typedef std::vector<Recorded> Graph;
static Graph graph;
static void* captured;  // the stream whose launches are recorded
static int graph_launches;
static const int CAPTURING = 900;  // cudaErrorStreamCaptureUnsupported

static unsigned number_of(const char* variable, unsigned otherwise) {
  const char* text = std::getenv(variable);
  return text ? std::atoi(text) : otherwise;
}

static int capability(int index) {
  const int number = number_of("TVMQ_EMULATED_CAPABILITY", 80);  // 80 for sm_80
  return index ? number % 10 : number / 10;
}

// Of several GPUs all but the last are of compute capability 6.1, and refuse what is not for them.
static int devices() { return number_of("TVMQ_EMULATED_DEVICES", 1); }
static const int INVALID_DEVICE = 101, OUT_OF_MEMORY = 2;

extern "C" {
int cuEmulatedDevice, cuEmulatedFailure;  // the current GPU; what launches and allocations fail with. Of both libraries
}
static int refused() { return cuEmulatedDevice == devices() - 1 ? cuEmulatedFailure : INVALID_DEVICE; }

extern "C" {
int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* version) { return *version = 13000, 0; }
int cuDeviceGetCount(int* count) { return *count = devices(), 0; }
int cuDeviceGet(int* device, int number) { return *device = number, 0; }
int cuDeviceGetName(char* name, int length, int) { return std::snprintf(name, length, "emulated"), 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  const bool of_capability = attribute == 75 || attribute == 76, old = device < devices() - 1;
  *value = !of_capability ? 1 : old ? (attribute == 75 ? 6 : 1) : capability(attribute - 75);
  return 0;
}
int cuGetErrorName(int, const char** text) { return *text = "emulated error", 0; }
int cuGetErrorString(int, const char** text) { return *text = "emulated error", 0; }
int cuFuncSetAttribute(void*, int, int) { return 0; }
int cuTensorMapEncodeTiled() { return 801; }
int cuModuleUnload(void*) { return 0; }

int cuModuleLoadData(void** module, const void* image) {
  const uint8_t* elf = static_cast<const uint8_t*>(image);
  uint64_t sections;
  uint16_t size, count;
  std::memcpy(&sections, elf + 40, 8), std::memcpy(&size, elf + 58, 2), std::memcpy(&count, elf + 60, 2);
  char path[] = "/tmp/tvmq-emulated-XXXXXX";
  const int file = mkstemp(path);
  const size_t bytes = sections + uint64_t(size) * count;
  if (file < 0 || write(file, image, bytes) != static_cast<ssize_t>(bytes)) return 301;
  close(file);
  *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  unlink(path);
  if (!*module) std::fprintf(stderr, "%s\n", dlerror());
  return *module ? 0 : 209;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  void* launch = dlsym(module, (std::string("launch_") + name).c_str());
  if (!launch) return 500;
  const unsigned* count = static_cast<unsigned*>(dlsym(module, (std::string("arguments_") + name).c_str()));
  *function = new Function{reinterpret_cast<Launch>(launch), *count};
  return 0;
}

int cuLaunchKernelEx(const Config* c, void* function, void** arguments, void**) {
  if (refused()) return refused();
  if (c->shared_bytes > number_of("TVMQ_EMULATED_SHARED_BYTES", 227 << 10)) return 1;
  unsigned extents[7] = {c->grid[0],  c->grid[1],  c->grid[2],     c->block[0],
                         c->block[1], c->block[2], c->shared_bytes};
  const Function& f = *static_cast<Function*>(function);
  if (!captured) return f.launch(arguments, extents);
  if (c->stream != captured) return CAPTURING;
  Recorded one = {f.launch, {}, {}};
  std::memcpy(one.extents, extents, sizeof(extents));
  for (unsigned i = 0; i < f.arguments; ++i) one.values.push_back(*static_cast<uint64_t*>(arguments[i]));
  graph.push_back(one);
  return 0;
}

int cudaGetDeviceCount(int* count) { return *count = devices(), 0; }
int cudaGetDevice(int* device) { return *device = cuEmulatedDevice, 0; }
int cudaSetDevice(int device) { return cuEmulatedDevice = device, 0; }
int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  if (attribute == 75 || attribute == 76) return cuDeviceGetAttribute(value, attribute, device);
  return *value = attribute == 10 ? 32 : attribute == 1 ? 1024 : attribute == 8 ? 48 << 10 : 1, 0;
}
int cudaGetDeviceProperties(void*, int) { return 0; }
int cudaMalloc(void** memory, size_t bytes) {
  if (refused()) return refused();
  return captured ? CAPTURING : (*memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256 + 256), 0);
}
int cudaFree(void* memory) { return captured ? CAPTURING : (std::free(memory), 0); }
int cudaMallocHost(void** memory, size_t bytes) { return cudaMalloc(memory, bytes); }
int cudaFreeHost(void* memory) { return cudaFree(memory); }
int cudaMemGetInfo(size_t* available, size_t* total) { return *available = *total = size_t(4) << 30, 0; }
int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, void*) {
  return captured ? CAPTURING : (std::memmove(to, from, bytes), 0);
}
int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t n, void*) { return std::memmove(to, from, n), 0; }
int cudaPeekAtLastError() { return 0; }
int cudaGetLastError() { return 0; }
const char* cudaGetErrorName(int) { return "emulated error"; }
const char* cudaGetErrorString(int code) { return code == OUT_OF_MEMORY ? "out of memory" : "emulated error"; }
int cudaEventCreate(void** event) { return *event = new double(0), 0; }
int cudaEventDestroy(void* event) { return delete static_cast<double*>(event), 0; }
int cudaEventElapsedTime(float* ms, void* begin, void* end) {
  return *ms = static_cast<float>(*static_cast<double*>(end) - *static_cast<double*>(begin)), 0;
}
int cudaEventRecord(void* event, void*) {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return *static_cast<double*>(event) = now.tv_sec * 1e3 + now.tv_nsec / 1e6, 0;
}
int cudaEventSynchronize(void*) { return 0; }
int cudaStreamCreate(void** stream) { return *stream = new char, 0; }
int cudaStreamCreateWithFlags(void** stream, unsigned) { return cudaStreamCreate(stream); }
int cudaStreamDestroy(void* stream) { return delete static_cast<char*>(stream), 0; }
int cudaStreamSynchronize(void*) { return captured ? CAPTURING : 0; }
int cudaStreamWaitEvent(void*, void*, unsigned) { return 0; }
int cudaStreamBeginCapture(void* stream, int) { return captured || !stream ? CAPTURING : (captured = stream, 0); }
int cudaStreamEndCapture(void* stream, void** found) {
  if (stream != captured) return CAPTURING;
  captured = nullptr;
  *found = new Graph;
  static_cast<Graph*>(*found)->swap(graph);
  return 0;
}
int cudaGraphInstantiate(void** exec, void* found, unsigned long long) {
  return *exec = new Graph(*static_cast<Graph*>(found)), 0;
}
int cudaGraphLaunch(void* exec, void*) {
  for (Recorded& one : *static_cast<Graph*>(exec)) {
    std::vector<void*> places;
    for (uint64_t& value : one.values) places.push_back(&value);
    if (const int error = one.launch(places.data(), one.extents)) return error;
  }
  return ++graph_launches, 0;
}
int cuEmulatedGraphLaunches() { return graph_launches; }
int cudaGraphDestroy(void* found) { return delete static_cast<Graph*>(found), 0; }
int cudaGraphExecDestroy(void* exec) { return cudaGraphDestroy(exec); }
}
