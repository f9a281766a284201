// Builds GGUF files in memory, malformed ones too: every field is written as given.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

class GgufWriter {
 public:
  uint32_t version = 3;
  int64_t extra_tensors = 0;  // added to the counts of the header
  int64_t extra_values = 0;
  uint64_t alignment = 32;

  template <typename T>
  void Add(std::string_view key, uint32_t type, T value) {
    BeginPair(key, type);
    Put(values_, value);
  }
  void AddU32(std::string_view key, uint32_t value) { Add(key, 4, value); }
  void AddF32(std::string_view key, float value) { Add(key, 6, value); }
  void AddBool(std::string_view key, bool value) { Add(key, 7, static_cast<uint8_t>(value)); }
  void AddString(std::string_view key, std::string_view text) {
    BeginPair(key, 8);
    PutString(values_, text);
  }
  void AddStrings(std::string_view key, const std::vector<std::string>& texts) {
    BeginPair(key, 9);
    Put(values_, uint32_t{8});
    Put(values_, uint64_t{texts.size()});
    for (const std::string& text : texts) PutString(values_, text);
  }
  template <typename T>
  void AddArray(std::string_view key, uint32_t type, const std::vector<T>& elements) {
    BeginPair(key, 9);
    Put(values_, type);
    Put(values_, uint64_t{elements.size()});
    for (const T& element : elements) Put(values_, element);
  }
  // The value's bytes as they are.
  void AddRaw(std::string_view key, uint32_t type, std::string_view bytes) {
    BeginPair(key, type);
    values_ += bytes;
  }

  // ne: innermost dimension first. The offset is where `data` lands unless given.
  void AddTensor(std::string_view name, const std::vector<int64_t>& ne, uint32_t type,
                 std::string_view data, int64_t offset = -1) {
    ++tensors_;
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    PutString(infos_, name);
    Put(infos_, static_cast<uint32_t>(ne.size()));
    for (const int64_t extent : ne) Put(infos_, extent);
    Put(infos_, type);
    Put(infos_, offset >= 0 ? static_cast<uint64_t>(offset) : uint64_t{data_.size()});
    data_ += data;
  }

  std::string Build() const {
    std::string file = "GGUF";
    Put(file, version);
    Put(file, tensors_ + extra_tensors);
    Put(file, pairs_ + extra_values);
    file += values_;
    file += infos_;
    if (tensors_ == 0) return file;
    file.resize((file.size() + alignment - 1) / alignment * alignment);
    return file + data_;
  }

 private:
  template <typename T>
  static void Put(std::string& to, T value) {
    to.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  static void PutString(std::string& to, std::string_view text) {
    Put(to, uint64_t{text.size()});
    to += text;
  }
  void BeginPair(std::string_view key, uint32_t type) {
    ++pairs_;
    PutString(values_, key);
    Put(values_, type);
  }

  int64_t pairs_ = 0;
  int64_t tensors_ = 0;
  std::string values_;
  std::string infos_;
  std::string data_;
};

}  // namespace nibble
