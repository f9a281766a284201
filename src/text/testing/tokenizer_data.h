// What the tokenizer's tests and benchmark read: golden files, published tokenizers, and the seeded
// text generator. tools/tokenizer_corpus.py is the same generator in Python, and the goldens hold a
// hash over the text that both must reach.
#pragma once

#include <algorithm>
#include <boost/json.hpp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "testing/source_folder.h"
#include "text/unicode/utf8.h"

namespace nibble::text {

inline std::filesystem::path TokenizerGoldens() {
  return SourceFolder() / "tests/golden/tokenizer";
}

inline std::string ReadText(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline boost::json::object ReadJson(const std::filesystem::path& path) {
  return boost::json::parse(ReadText(path)).as_object();
}

// Where files of published tokenizers are, if they are.
inline std::filesystem::path PublishedFolder(const std::string& name) {
  return SharedFolder() / "data/tokenizers" / name;
}

// Empty where the shared data folder does not have it.
inline std::string ReadPublishedFile(const std::string& name, const std::string& file_name) {
  return ReadText(PublishedFolder(name) / file_name);
}

// The tokenizer.json (or another file) of a published model, empty where the shared data folder
// does not have it.
inline std::string ReadPublishedTokenizer(const std::string& name,
                                          const std::string& file_name = "tokenizer.json") {
  const std::filesystem::path file = PublishedFolder(name) / (file_name + ".xz");
  std::string content;
  if (!std::filesystem::exists(file)) return content;
  const std::string command = "xz -dc '" + file.string() + "'";
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"), &pclose);
  if (pipe == nullptr) return content;
  std::vector<char> buffer(1 << 20);
  for (size_t n = 0; (n = std::fread(buffer.data(), 1, buffer.size(), pipe.get())) > 0;) {
    content.append(buffer.data(), n);
  }
  return content;
}

// File names without extension, sorted; none where there is no such folder.
inline std::vector<std::string> NamesIn(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  if (!std::filesystem::exists(folder)) return names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().stem().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

class SplitMix64 {
 public:
  explicit SplitMix64(uint64_t seed) : state_(seed) {}
  uint64_t Below(uint64_t n) {
    state_ += 0x9E3779B97F4A7C15ull;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return (z ^ (z >> 31)) % n;
  }

 private:
  uint64_t state_;
};

class CorpusGenerator {
 public:
  // corpus: the parsed tests/golden/tokenizer/corpus.json.
  CorpusGenerator(const boost::json::object& corpus, uint64_t seed) : random_(seed) {
    words_ = Strings(corpus.at("words"));
    blanks_ = Strings(corpus.at("blanks"));
    marks_ = Strings(corpus.at("marks"));
    special_ = Strings(corpus.at("special"));
    for (const auto& block : corpus.at("blocks").as_array()) {
      blocks_.emplace_back(block.at(0).as_int64(), block.at(1).as_int64());
    }
  }

  // A text of about chunk_bytes.
  std::string Chunk(size_t chunk_bytes = 4096) {
    std::string text;
    while (text.size() < chunk_bytes) AppendSegment(&text);
    return text;
  }

 private:
  static std::vector<std::string> Strings(const boost::json::value& list) {
    return boost::json::value_to<std::vector<std::string>>(list);
  }
  const std::string& Pick(const std::vector<std::string>& list) {
    return list[random_.Below(list.size())];
  }

  void AppendSegment(std::string* text) {
    const uint64_t kind = random_.Below(100);
    if (kind < 62) {
      const std::string& word = Pick(words_);
      if (random_.Below(8) != 0) *text += ' ';
      *text += word;
    } else if (kind < 70) {
      const auto [first, last] = blocks_[random_.Below(blocks_.size())];
      const uint64_t count = 1 + random_.Below(6);
      for (uint64_t i = 0; i < count; ++i) {
        const uint64_t offset = random_.Below(static_cast<uint64_t>(last - first + 1));
        AppendUtf8(static_cast<char32_t>(static_cast<uint64_t>(first) + offset), text);
      }
    } else if (kind < 78) {
      uint64_t limit = 10;
      for (uint64_t digits = random_.Below(9); digits > 0; --digits) limit *= 10;
      *text += std::to_string(random_.Below(limit));
    } else if (kind < 98) {
      const std::string& piece = Pick(kind < 86 ? blanks_ : marks_);
      for (uint64_t count = 1 + random_.Below(3); count > 0; --count) *text += piece;
    } else {
      *text += Pick(special_);
    }
  }

  SplitMix64 random_;
  std::vector<std::string> words_;
  std::vector<std::string> blanks_;
  std::vector<std::string> marks_;
  std::vector<std::string> special_;
  std::vector<std::pair<int64_t, int64_t>> blocks_;
};

}  // namespace nibble::text
