// Arrays in files: .npy (format 1 and 2, C order), or raw elements.
#pragma once

#include "model.h"

namespace tvmq {

inline std::string NumpyType(const Spec& spec) {
  DLDataType type = spec.Type();
  int bytes = (type.bits + 7) / 8;
  const char* kind = spec.dtype == "bool" ? "b" : type.code == kDLFloat ? "f" : type.code == kDLUInt ? "u" : "i";
  return (bytes == 1 ? "|" : "<") + std::string(kind) + std::to_string(bytes);
}

inline std::string NumpyShape(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

inline ffi::Tensor ReadArray(const std::string& path, const Spec& spec) {
  Bytes data = ReadFile(path);
  size_t begin = 0;
  if (data.size() > 12 && std::memcmp(data.data(), "\x93NUMPY", 6) == 0) {
    int wide = data[6] > 1 ? 4 : 2;
    begin = 8 + wide + Number(data.data() + 8, wide);
    if (begin > data.size()) throw Error(path + ": a broken .npy file");
    std::string header(data.begin() + 8 + wide, data.begin() + begin);
    auto has = [&](const std::string& part) { return header.find(part) != std::string::npos; };
    if (!has("'" + NumpyType(spec) + "'") || !has("'shape': " + NumpyShape(spec.shape)) || !has("'fortran_order': False")) {
      throw Error(path + ": holds " + header.substr(0, header.find('}') + 1) + ", the input " + spec.name + " wants " +
                  spec.dtype + " " + NumpyShape(spec.shape) + " in C order");
    }
  }
  if (data.size() - begin != spec.Size()) {
    throw Error(path + ": has " + std::to_string(data.size() - begin) + " bytes of elements, the input " + spec.name +
                " (" + spec.dtype + " " + NumpyShape(spec.shape) + ") has " + std::to_string(spec.Size()));
  }
  ffi::Tensor tensor = Empty(spec.shape, spec.Type());
  std::memcpy(tensor.data_ptr(), data.data() + begin, spec.Size());
  return tensor;
}

inline void WriteArray(const std::string& path, const Spec& spec, const ffi::Tensor& tensor) {
  std::string header = "{'descr': '" + NumpyType(spec) + "', 'fortran_order': False, 'shape': " + NumpyShape(spec.shape) + ", }";
  header += std::string(63 - (10 + header.size()) % 64, ' ') + "\n";
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (!file) throw Error(path + ": cannot be written; choose another place");
  uint8_t length[] = {uint8_t(header.size()), uint8_t(header.size() >> 8)};
  const char* data = static_cast<const char*>(tensor.data_ptr()) + tensor.byte_offset();
  bool done = std::fwrite("\x93NUMPY\1\0", 1, 8, file) == 8 && std::fwrite(length, 1, 2, file) == 2 &&
              std::fwrite(header.data(), 1, header.size(), file) == header.size() &&
              std::fwrite(data, 1, spec.Size(), file) == spec.Size();
  if (std::fclose(file) || !done) throw Error(path + ": cannot be written; is the disk full?");
}

template <typename T>
void Append(const ffi::Tensor& tensor, std::vector<double>* to) {
  const T* data = reinterpret_cast<const T*>(static_cast<const char*>(tensor.data_ptr()) + tensor.byte_offset());
  int64_t n = 1;
  for (int i = 0; i < tensor.ndim(); ++i) n *= tensor.size(i);
  to->assign(data, data + n);
}

// The elements as they are printed; nothing for dtypes that C has no type for.
inline std::vector<double> Numbers(const ffi::Tensor& tensor) {
  std::vector<double> values;
  int code = tensor.dtype().code, bits = tensor.dtype().bits;
  if (code == kDLFloat && bits == 32) Append<float>(tensor, &values);
  if (code == kDLFloat && bits == 64) Append<double>(tensor, &values);
  if (code == kDLInt && bits == 8) Append<int8_t>(tensor, &values);
  if (code == kDLInt && bits == 16) Append<int16_t>(tensor, &values);
  if (code == kDLInt && bits == 32) Append<int32_t>(tensor, &values);
  if (code == kDLInt && bits == 64) Append<int64_t>(tensor, &values);
  if ((code == kDLUInt || code == kDLBool) && bits == 8) Append<uint8_t>(tensor, &values);
  if (code == kDLUInt && bits == 16) Append<uint16_t>(tensor, &values);
  if (code == kDLUInt && bits == 32) Append<uint32_t>(tensor, &values);
  return values;
}

}  // namespace tvmq
