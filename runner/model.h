// A compiled model: checked against its manifest and this machine, then run by TVM's runtime library.
#pragma once

#include <sched.h>
#include <sys/mman.h>
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/map.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <set>

#include "archive.h"
#include "machine.h"

namespace tvmq {

namespace ffi = tvm::ffi;
using Json = ffi::Any;

constexpr size_t kAlignment = 64;  // bytes; generated code is told that every tensor starts at a multiple of it
constexpr int64_t kLargest = int64_t(1) << 31;  // elements; no artifact holds more bytes
constexpr int kShareAllCpus = -3;  // TVM's thread pool binds no thread to a core

#if !defined(TVMQ_TVM) || !defined(TVMQ_TVM_FFI)
#error "scripts/runner.sh says which TVM this is for: -DTVMQ_TVM='"VERSION"' and -DTVMQ_TVM_FFI"
#endif

inline Json At(const Json& object, const char* key) {
  auto map = object.cast<ffi::Map<ffi::Any, ffi::Any>>();
  if (!map.count(ffi::String(key))) throw ArtifactError(std::string("its manifest lacks ") + key + "; compile it again");
  return map[ffi::String(key)];
}
inline std::string Text(const Json& value) { return std::string(value.cast<ffi::String>()); }
inline int64_t Integer(const Json& value) { return value.cast<int64_t>(); }
inline ffi::Array<ffi::Any> List(const Json& value) { return value.cast<ffi::Array<ffi::Any>>(); }

template <typename... Args>
ffi::Any Call(const char* name, Args&&... args) {
  return ffi::Function::GetGlobalRequired(name)(std::forward<Args>(args)...);
}

struct Spec {
  std::string name, dtype;
  std::vector<int64_t> shape;

  explicit Spec(const Json& json) : name(Text(At(json, json_name(json)))), dtype(Text(At(json, "dtype"))) {
    for (const ffi::Any& dim : List(At(json, "shape"))) shape.push_back(Integer(dim));
    bool sane = true;
    for (int64_t dim : shape) sane &= dim >= 0 && dim <= kLargest;
    if (!sane || Elements() > kLargest) throw ArtifactError(name + " has no sane shape; do not use this file");
  }
  static const char* json_name(const Json& json) {
    return json.cast<ffi::Map<ffi::Any, ffi::Any>>().count(ffi::String("name")) ? "name" : "id";
  }
  int64_t Elements() const {
    int64_t n = 1;
    for (int64_t dim : shape) n = std::min(n * dim, kLargest + 1);
    return n;
  }
  DLDataType Type() const { return ffi::StringToDLDataType(dtype); }
  bool Fits(const ffi::Tensor& tensor) const {
    DLDataType type = Type(), given = tensor.dtype();
    bool same = type.code == given.code && type.bits == given.bits && tensor.ndim() == int(shape.size());
    for (size_t i = 0; same && i < shape.size(); ++i) same = tensor.size(i) == shape[i];
    return same;
  }
  size_t Size() const { return Elements() * ((Type().bits + 7) / 8); }
};

struct Allocator {
  void AllocData(DLTensor* tensor) {
    size_t size = ffi::GetDataSize(*tensor);
    tensor->data = std::aligned_alloc(kAlignment, (size / kAlignment + 1) * kAlignment);
    if (!tensor->data) throw std::bad_alloc();
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

// The bits of the nearest float16, ties to even.
inline uint16_t Half(float value) {
  uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  float size = std::fabs(value);
  if (size >= 65520) return sign | 0x7c00;
  int exponent = -13;  // of numbers below the normal ones
  if (size >= std::ldexp(1.0f, -14)) std::frexp(size, &exponent);
  int mantissa = std::nearbyint(std::ldexp(size, 11 - exponent));
  return sign | ((exponent + 13) * 1024 + mantissa);
}

inline ffi::Tensor Empty(const std::vector<int64_t>& shape, DLDataType type) {
  return ffi::Tensor::FromNDAlloc(Allocator(), ffi::ShapeView(shape.data(), shape.size()), type, DLDevice{kDLCPU, 0});
}

// As golden.checksum of tvmq: of dtype, shape and contents.
inline std::string Checksum(const ffi::Tensor& tensor, const std::string& dtype) {
  std::string head = dtype + "[";
  for (int i = 0; i < tensor.ndim(); ++i) head += (i ? ", " : "") + std::to_string(tensor.size(i));
  head += "]";
  Bytes all(head.begin(), head.end());
  const uint8_t* data = static_cast<const uint8_t*>(tensor.data_ptr()) + tensor.byte_offset();
  all.insert(all.end(), data, data + ffi::GetDataSize(tensor));
  return Sha256(all.data(), all.size());
}

class Model {
 public:
  explicit Model(const std::string& path) : path_(path), file_(ReadFile(path)) {
    try {
      members_ = Members(file_);
      Bytes text = Plain("manifest.json");
      manifest_ = Call("ffi.json.Parse", ffi::String(std::string(text.begin(), text.end())));
      CheckVersions();
      CheckMembers();
      CheckMachine();
      for (const Json& json : List(At(manifest_, "inputs"))) inputs.emplace_back(json);
      for (const Json& json : List(At(manifest_, "outputs"))) outputs.emplace_back(json);
    } catch (const Error& error) {
      throw ArtifactError(path + ": " + error.what());
    } catch (const ffi::Error& error) {
      throw ArtifactError(path + ": manifest.json is damaged; copy or compile it again (" + error.what() + ")");
    }
  }

  std::vector<Spec> inputs, outputs;

  // threads: 0: one for each CPU that this process may use.
  void Load(int threads) {
    ffi::Array<ffi::String> cpus;
    cpu_set_t set;
    sched_getaffinity(0, sizeof set, &set);
    for (int i = 0; i < CPU_SETSIZE; ++i) {
      if (CPU_ISSET(i, &set)) cpus.push_back(std::to_string(i));
    }
    if (threads > int(cpus.size())) throw Error("--threads: this process has " + std::to_string(cpus.size()) + " CPUs");
    Call("runtime.config_threadpool", kShareAllCpus, threads ? threads : int(cpus.size()), cpus);
    LoadLibrary();
    for (const Json& json : List(At(manifest_, "constants"))) constants_.push_back(Constant(json));
    main_ = Machine();
    function_ = Method(main_, "main");
  }

  std::vector<ffi::Tensor> Run(const std::vector<ffi::Tensor>& given) {
    std::vector<ffi::Tensor> results = Invoke(function_, given);
    bool same = results.size() == outputs.size();
    for (size_t i = 0; same && i < results.size(); ++i) same = outputs[i].Fits(results[i]);
    if (!same) throw ArtifactError(path_ + ": its code gives other tensors than its manifest says; compile it again");
    return results;
  }

  // Run the golden input; return what differs from the checksums of the manifest, and how much was compared.
  std::vector<std::string> Verify(int* compared) {
    std::vector<std::string> wrong;
    std::vector<ffi::Tensor> golden = Golden();
    ffi::Any machine = Machine();
    ffi::Function trace = Method(machine, "trace");
    ffi::Array<ffi::Any> sites = List(At(manifest_, "sites")), digests = List(At(manifest_, "golden_outputs"));
    auto compare = [&](const Json& json, const ffi::Tensor& value, const std::string& digest) {
      if (!At(json, "portable").cast<bool>()) return;
      ++*compared;
      Spec spec(json);
      if (Checksum(value, spec.dtype) != digest) wrong.push_back(spec.name);
    };
    std::vector<ffi::Tensor> values = Invoke(trace, golden), results = Run(golden);
    if (values.size() != sites.size() || digests.size() != outputs.size()) {
      throw ArtifactError(path_ + ": its code gives other tensors than its manifest says; compile it again");
    }
    for (size_t i = 0; i < values.size(); ++i) compare(sites[i], values[i], Text(At(sites[i], "sha256")));
    for (size_t i = 0; i < results.size(); ++i) {
      compare(List(At(manifest_, "outputs"))[i], results[i], Text(digests[i]));
    }
    return wrong;
  }

  // The input that the artifact is verified with.
  std::vector<ffi::Tensor> Golden() {
    Bytes data = Plain("golden.bin");
    std::vector<ffi::Tensor> tensors;
    size_t at = 0;
    for (size_t i = 0; i < inputs.size(); ++i) {
      const Spec& spec = inputs[i];
      Json sample = List(At(manifest_, "golden_inputs"))[i];
      ffi::Tensor tensor = Empty(spec.shape, spec.Type());
      bool coded = spec.Type().code == kDLFloat;
      size_t size = coded ? spec.Elements() : spec.Size();
      if (size > data.size() - at) throw ArtifactError(path_ + ": golden.bin is too short; do not use this file");
      if (coded) {
        Decode(data.data() + at, size, float(Integer(At(sample, "offset"))), Integer(At(sample, "exponent")), tensor);
      } else {
        std::memcpy(tensor.data_ptr(), data.data() + at, size);
      }
      at += size;
      tensors.push_back(tensor);
    }
    return tensors;
  }

 private:
  // See golden.Sample of tvmq.
  static void Decode(const uint8_t* codes, size_t count, float offset, int exponent, const ffi::Tensor& tensor) {
    void* to = tensor.data_ptr();
    for (size_t i = 0; i < count; ++i) {
      float value = std::ldexp(float(codes[i]) + offset, exponent);
      if (tensor.dtype().bits == 16) {
        static_cast<uint16_t*>(to)[i] = Half(value);
      } else if (tensor.dtype().bits == 32) {
        static_cast<float*>(to)[i] = value;
      } else {
        static_cast<double*>(to)[i] = value;
      }
    }
  }

  Bytes Plain(const char* name) {
    auto found = members_.find(name);
    if (found == members_.end()) throw ArtifactError(std::string("member ") + name + " is missing; copy it again");
    return found->second.Inflated();
  }

  void CheckVersions() {
    if (Integer(At(manifest_, "format")) != 2) throw ArtifactError("another format; use the runner of the tvmq that made it");
    std::string tvm = Text(At(manifest_, "tvm")), ffi = Text(At(manifest_, "tvm_ffi"));
    if (tvm != TVMQ_TVM || ffi != TVMQ_TVM_FFI) {
      throw ArtifactError("made with apache-tvm " + tvm + " and apache-tvm-ffi " + ffi + ", this runner is for " TVMQ_TVM
                          " and " TVMQ_TVM_FFI "; compile it again, or build the runner of the tvmq that made it");
    }
  }

  void CheckMembers() {
    std::map<std::string, std::string> wanted;
    for (const Json& json : List(At(manifest_, "members"))) wanted[Text(At(json, "name"))] = Text(At(json, "sha256"));
    for (const char* name : {"constants.bin", "golden.bin", "graph.json", "library.so"}) {
      auto found = members_.find(name);
      if (found == members_.end() || !wanted.count(name)) {
        throw ArtifactError("member " + std::string(name) + " is missing; copy it again");
      }
      if (Sha256(found->second.data, found->second.stored) != wanted[name]) {
        throw ArtifactError(std::string(name) + " has another SHA-256 than its manifest says; " +
                            "the file was damaged or changed: copy it again");
      }
    }
  }

  void CheckMachine() {
    Bytes library = Plain("library.so");
    int machine = library.size() > 20 ? library[18] | library[19] << 8 : 0;
    Json about = At(manifest_, "description");
    if (machine != kMachine) {
      throw ArtifactError("holds code for " + Text(At(about, "triple")) + ", this is linux on " + kMachineName +
                          "; compile it for this machine");
    }
    std::set<std::string> here = CpuFeatures();
    std::string missing;
    bool tiles = false;
    for (const Json& name : List(At(about, "features"))) {
      if (Text(name).rfind("sm_", 0) == 0) {
        throw ArtifactError("its kernels are for an NVIDIA GPU, and this program is for CPUs; run it with Python: `tvmq run`");
      }
      if (!here.count(Text(name))) missing += (missing.empty() ? "" : ", ") + Text(name);
      tiles |= Text(name) == "amx_tile";
    }
    if (!missing.empty()) {
      throw ArtifactError("needs the CPU feature " + missing + ", which this CPU lacks; compile it for this machine");
    }
    if (tiles && !MayUseTiles()) {
      throw ArtifactError("needs AMX tiles, which Linux does not let this process use (5.16 or later does)");
    }
  }

  static ffi::Function Method(const ffi::Any& module, const char* name) {
    return Call("ffi.ModuleGetFunction", module, ffi::String(name), true).cast<ffi::Function>();
  }

  void LoadLibrary() {
    Bytes library = Plain("library.so");
    int handle = memfd_create("tvmq.so", 0);
    if (handle < 0 || write(handle, library.data(), library.size()) != ssize_t(library.size())) throw std::bad_alloc();
    std::string place = "/proc/self/fd/" + std::to_string(handle);
    // The loader goes by the ending of the name.
    const char* chosen = std::getenv("TMPDIR");
    std::string parent = chosen && *chosen ? chosen : "/tmp", folder = parent + "/tvmq-run-XXXXXX";
    EnvironmentError refused(parent + ": a temporary link cannot be made there; set TMPDIR to a folder where it can");
    if (!mkdtemp(folder.data())) throw refused;
    std::string link = folder + "/library.so";
    bool linked = symlink(place.c_str(), link.c_str()) == 0;
    try {
      if (!linked) throw refused;
      library_ = Call("ffi.ModuleLoadFromFile", ffi::String(link));
    } catch (...) {
      unlink(link.c_str());
      rmdir(folder.c_str());
      throw;
    }
    unlink(link.c_str());
    rmdir(folder.c_str());
  }

  ffi::Any Machine() {
    ffi::Any machine = Method(library_, "vm_load_executable")();
    Method(machine, "vm_initialization")(int(kDLCPU), 0, 2);  // 2: a pool of memory, kept from run to run
    return machine;
  }

  // Int8 constants of few bits are stored in planes of bits; see bit_planes.py.
  ffi::Tensor Constant(const Json& json) {
    Spec spec(json);
    const Member& arena = members_.at("constants.bin");
    size_t offset = Integer(At(json, "offset"));
    int bits = Integer(At(json, "bits"));
    ArtifactError outside(path_ + ": a constant lies outside; do not use this file");
    if (arena.deflated || offset > arena.stored) throw outside;
    ffi::Tensor tensor = Empty(spec.shape, spec.Type());
    if (spec.dtype != "int8" || bits == 8) {
      if (spec.Size() > arena.stored - offset) throw outside;
      std::memcpy(tensor.data_ptr(), arena.data + offset, spec.Size());
      return tensor;
    }
    size_t elements = spec.Elements(), rows = (elements + 63) / 64, at = offset;
    uint8_t* to = static_cast<uint8_t*>(tensor.data_ptr());
    std::memset(to, 0, elements);
    for (int width = 4, above = 0; width; width /= 2) {
      if (bits - above < width) continue;
      size_t per_byte = 8 / width, count = (rows + per_byte - 1) / per_byte;
      uint8_t mask = ((1 << width) - 1) << (8 - above - width);
      if (at > arena.stored || count * 64 > arena.stored - at) throw outside;
      for (size_t i = 0; i < elements; ++i) {
        size_t row = i / 64;
        uint8_t moved = arena.data[at + row / per_byte * 64 + i % 64] << (width * (row % per_byte));
        to[i] |= moved >> above & mask;
      }
      at += count * 64;
      above += width;
    }
    return tensor;
  }

  // Call a function of the library, for each sample by itself where it takes one.
  std::vector<ffi::Tensor> Invoke(const ffi::Function& function, const std::vector<ffi::Tensor>& given) {
    int64_t samples = Integer(At(manifest_, "samples"));
    for (const ffi::Tensor& whole : given) {
      bool shared = samples == 1 || (samples > 1 && whole.ndim() > 0 && whole.size(0) % samples == 0);
      if (!shared) throw ArtifactError(path_ + ": its samples do not share out its inputs; do not use this file");
    }
    if (samples == 1) return Once(function, given);
    std::vector<ffi::Tensor> all;
    for (int64_t number = 0; number < samples; ++number) {
      std::vector<ffi::Tensor> part;
      for (const ffi::Tensor& whole : given) part.push_back(Part(whole, number, samples));
      std::vector<ffi::Tensor> found = Once(function, part);
      for (size_t i = 0; i < found.size(); ++i) {
        if (number == 0) {
          std::vector<int64_t> shape(found[i].shape().begin(), found[i].shape().end());
          shape[0] *= samples;
          all.push_back(Empty(shape, found[i].dtype()));
        }
        size_t size = ffi::GetDataSize(found[i]);
        const char* from = static_cast<const char*>(found[i].data_ptr()) + found[i].byte_offset();
        std::memcpy(static_cast<char*>(all[i].data_ptr()) + number * size, from, size);
      }
    }
    return all;
  }

  static ffi::Tensor Part(const ffi::Tensor& whole, int64_t number, int64_t samples) {
    std::vector<int64_t> shape(whole.shape().begin(), whole.shape().end());
    shape[0] /= samples;
    ffi::Tensor part = Empty(shape, whole.dtype());
    size_t size = ffi::GetDataSize(part);
    std::memcpy(part.data_ptr(), static_cast<const char*>(whole.data_ptr()) + number * size, size);
    return part;
  }

  std::vector<ffi::Tensor> Once(const ffi::Function& function, const std::vector<ffi::Tensor>& given) {
    std::vector<ffi::AnyView> arguments(given.begin(), given.end());
    arguments.push_back(constants_);
    ffi::Any result;
    function.CallPacked(arguments.data(), arguments.size(), &result);
    if (auto one = result.try_cast<ffi::Tensor>()) return {*one};
    std::vector<ffi::Tensor> all;
    for (const ffi::Any& each : result.cast<ffi::Array<ffi::Any>>()) all.push_back(each.cast<ffi::Tensor>());
    return all;
  }

  std::string path_;
  Bytes file_;
  std::map<std::string, Member> members_;
  Json manifest_;
  ffi::Array<ffi::Tensor> constants_;
  ffi::Any library_, main_;  // modules; whatever runs lives in them
  ffi::Function function_;
};

}  // namespace tvmq
