// Read an artifact: a zip of members, stored or deflated, and their SHA-256.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace tvmq {

using Bytes = std::vector<uint8_t>;

// What the user can mend; the exit codes are those of tvmq.
struct Error : std::runtime_error {
  int code;
  explicit Error(const std::string& what, int code = 2) : std::runtime_error(what), code(code) {}
};
struct ArtifactError : Error {
  explicit ArtifactError(const std::string& what) : Error(what, 4) {}
};
struct EnvironmentError : Error {
  explicit EnvironmentError(const std::string& what) : Error(what, 5) {}
};

inline Bytes ReadFile(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (!file) throw Error(path + ": cannot be read; check the path");
  std::fseek(file, 0, SEEK_END);
  long size = std::ftell(file);
  std::rewind(file);
  Bytes data(size > 0 ? size : 0);
  size_t got = std::fread(data.data(), 1, data.size(), file);
  std::fclose(file);
  if (size < 0 || got != data.size()) throw Error(path + ": cannot be read; give a file");
  return data;
}

// RFC 1951. The result has exactly `size` bytes, or it is an error.
class Inflater {
 public:
  Inflater(const uint8_t* data, size_t length, size_t size) : data_(data), length_(length) {
    out_.reserve(size);
    for (bool last = false; !last;) {
      last = Bits(1);
      uint32_t kind = Bits(2);
      if (kind == 0) {
        Stored(size);
      } else if (kind == 1) {
        Fixed(size);
      } else if (kind == 2) {
        Dynamic(size);
      } else {
        Broken();
      }
    }
    if (out_.size() != size) Broken();
  }
  Bytes Result() { return std::move(out_); }

 private:
  struct Code {
    uint16_t counts[16] = {}, symbols[288] = {};
    Code(const uint8_t* lengths, int n) {
      for (int i = 0; i < n; ++i) ++counts[lengths[i]];
      counts[0] = 0;
      uint16_t offsets[16] = {};
      for (int i = 1; i < 15; ++i) offsets[i + 1] = offsets[i] + counts[i];
      for (int i = 0; i < n; ++i) {
        if (lengths[i]) symbols[offsets[lengths[i]]++] = i;
      }
    }
  };

  [[noreturn]] static void Broken() { throw ArtifactError("a compressed member is damaged; copy it again"); }

  uint32_t Bits(int n) {
    while (have_ < n) {
      if (at_ == length_) Broken();
      hold_ |= uint64_t(data_[at_++]) << have_;
      have_ += 8;
    }
    uint32_t value = hold_ & ((uint64_t(1) << n) - 1);
    hold_ >>= n;
    have_ -= n;
    return value;
  }

  int Symbol(const Code& code) {
    int value = 0, first = 0, index = 0;
    for (int length = 1; length < 16; ++length) {
      value |= Bits(1);
      int count = code.counts[length];
      if (value - count < first) return code.symbols[index + value - first];
      index += count;
      first = (first + count) << 1;
      value <<= 1;
    }
    Broken();
  }

  void Stored(size_t limit) {
    hold_ = have_ = 0;
    if (at_ + 4 > length_) Broken();
    size_t n = data_[at_] | data_[at_ + 1] << 8;
    at_ += 4;
    if (at_ + n > length_ || out_.size() + n > limit) Broken();
    out_.insert(out_.end(), data_ + at_, data_ + at_ + n);
    at_ += n;
  }

  void Fixed(size_t limit) {
    uint8_t lengths[288], distances[30];
    for (int i = 0; i < 288; ++i) lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
    std::memset(distances, 5, sizeof distances);
    Block(Code(lengths, 288), Code(distances, 30), limit);
  }

  void Dynamic(size_t limit) {
    static const uint8_t order[] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    int literals = Bits(5) + 257, distances = Bits(5) + 1, codes = Bits(4) + 4;
    uint8_t lengths[320] = {};
    for (int i = 0; i < codes; ++i) lengths[order[i]] = Bits(3);
    Code code(lengths, 19);
    std::memset(lengths, 0, sizeof lengths);
    if (literals > 286 || distances > 30) Broken();
    for (int i = 0; i < literals + distances;) {
      int symbol = Symbol(code), repeat = 1;
      uint8_t value = symbol;
      if (symbol == 16) {
        if (i == 0) Broken();
        value = lengths[i - 1];
        repeat = 3 + Bits(2);
      } else if (symbol > 16) {
        value = 0;
        repeat = symbol == 17 ? 3 + Bits(3) : 11 + Bits(7);
      }
      if (i + repeat > literals + distances) Broken();
      while (repeat--) lengths[i++] = value;
    }
    Block(Code(lengths, literals), Code(lengths + literals, distances), limit);
  }

  void Block(const Code& literals, const Code& distances, size_t limit) {
    static const uint16_t base[] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                    31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
    static const uint8_t extra[] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                    2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
    static const uint16_t far[] = {1,   2,   3,   4,   5,   7,    9,    13,   17,   25,   33,   49,   65,    97,    129,
                                   193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
    for (int symbol; (symbol = Symbol(literals)) != 256;) {
      if (symbol < 256) {
        if (out_.size() == limit) Broken();
        out_.push_back(symbol);
        continue;
      }
      if ((symbol -= 257) > 28) Broken();
      size_t length = base[symbol] + Bits(extra[symbol]);
      int which = Symbol(distances);
      if (which > 29) Broken();
      size_t distance = far[which] + Bits(which < 2 ? 0 : which / 2 - 1);
      if (distance > out_.size() || out_.size() + length > limit) Broken();
      while (length--) out_.push_back(out_[out_.size() - distance]);
    }
  }

  const uint8_t* data_;
  size_t length_, at_ = 0;
  uint64_t hold_ = 0;
  int have_ = 0;
  Bytes out_;
};

// FIPS 180-4, in hexadecimal.
inline std::string Sha256(const void* data, size_t size) {
  static const uint32_t k[64] = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
      0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
      0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
      0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
      0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
      0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
      0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
      0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
  uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  auto turn = [](uint32_t x, int n) { return x >> n | x << (32 - n); };
  auto block = [&](const uint8_t* p) {
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; ++i) w[i] = p[4 * i] << 24 | p[4 * i + 1] << 16 | p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 64; ++i) {
      uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + (turn(a, 7) ^ turn(a, 18) ^ a >> 3) + w[i - 7] + (turn(b, 17) ^ turn(b, 19) ^ b >> 10);
    }
    std::memcpy(s, h, sizeof s);
    for (int i = 0; i < 64; ++i) {
      uint32_t e = s[4], a = s[0];
      uint32_t t = s[7] + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & s[5]) ^ (~e & s[6])) + k[i] + w[i];
      uint32_t u = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
      std::memmove(s + 1, s, 7 * sizeof *s);
      s[4] += t;
      s[0] = t + u;
    }
    for (int i = 0; i < 8; ++i) h[i] += s[i];
  };
  const uint8_t* p = static_cast<const uint8_t*>(data);
  size_t whole = size / 64 * 64;
  for (size_t i = 0; i < whole; i += 64) block(p + i);
  Bytes tail(p + whole, p + size);
  tail.push_back(0x80);
  while (tail.size() % 64 != 56) tail.push_back(0);
  for (int i = 7; i >= 0; --i) tail.push_back(uint64_t(size) * 8 >> 8 * i);
  for (size_t i = 0; i < tail.size(); i += 64) block(tail.data() + i);
  char text[65];
  for (int i = 0; i < 8; ++i) std::snprintf(text + 8 * i, 9, "%08x", h[i]);
  return text;
}

// As in zip: CRC-32 of IEEE 802.3.
inline uint32_t Crc32(const Bytes& data) {
  static uint32_t table[256];
  for (uint32_t i = 0; !table[255] && i < 256; ++i) {
    table[i] = i;
    for (int bit = 0; bit < 8; ++bit) table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xedb88320 : 0);
  }
  uint32_t crc = ~uint32_t(0);
  for (uint8_t byte : data) crc = crc >> 8 ^ table[(crc ^ byte) & 255];
  return ~crc;
}

struct Member {
  const uint8_t* data;  // as stored
  size_t stored, size;
  uint32_t crc;
  bool deflated;

  Bytes Inflated() const {
    Bytes plain = deflated ? Inflater(data, stored, size).Result() : Bytes(data, data + stored);
    if (Crc32(plain) != crc) throw ArtifactError("a member has another CRC-32 than the archive says; copy it again");
    return plain;
  }
};

inline uint32_t Number(const uint8_t* p, int bytes) {
  uint32_t value = 0;
  for (int i = bytes; i--;) value = value << 8 | p[i];
  return value;
}

// The members by name; they point into the file.
inline std::map<std::string, Member> Members(const Bytes& file) {
  const size_t end = 22, central = 46, local = 30;
  const char* why = "not an artifact of tvmq, or damaged; copy it again";
  if (file.size() < end || std::memcmp(file.data() + file.size() - end, "PK\5\6", 4)) throw ArtifactError(why);
  const uint8_t* last = file.data() + file.size() - end;
  size_t count = Number(last + 10, 2), at = Number(last + 16, 4);
  std::map<std::string, Member> members;
  while (count--) {
    if (at + central > file.size()) throw ArtifactError(why);
    const uint8_t* p = file.data() + at;
    size_t name = Number(p + 28, 2), extra = Number(p + 30, 2), stored = Number(p + 20, 4), start = Number(p + 42, 4);
    if (at + central + name > file.size() || start + local > file.size()) throw ArtifactError(why);
    const uint8_t* q = file.data() + start;
    size_t begin = start + local + Number(q + 26, 2) + Number(q + 28, 2), method = Number(p + 10, 2);
    size_t size = Number(p + 24, 4), most = 200 * stored + (1 << 20);
    if (begin + stored > file.size() || (method != 0 && method != 8) || size > most ||
        (method == 0 && size != stored)) throw ArtifactError(why);
    std::string key(reinterpret_cast<const char*>(p + central), name);
    members[key] = {file.data() + begin, stored, size, Number(p + 16, 4), method == 8};
    at += central + name + extra;
  }
  return members;
}

}  // namespace tvmq
