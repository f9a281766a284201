// Tokenizer speed per byte on generated mixed text and on a megabyte of one character, and the time
// to load. tools/bench_tokenizer.py runs this beside Hugging Face `tokenizers` and prints ratios.

#include <benchmark/benchmark.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "text/testing/tokenizer_data.h"
#include "text/tokenizer.h"

namespace nibble::text {
namespace {

constexpr size_t kMixedBytes = 2'000'000;
constexpr size_t kRunBytes = 1'000'000;
constexpr uint64_t kSeed = 1;

std::string ReadTokenizerJson(const std::string& name) {
  const auto family = TokenizerGoldens() / "families" / (name + ".json");
  return std::filesystem::exists(family) ? ReadText(family) : ReadPublishedTokenizer(name);
}

const Tokenizer& LoadOnce(const std::string& name) {
  static std::map<std::string, Tokenizer> loaded;
  auto it = loaded.find(name);
  if (it == loaded.end()) {
    auto tokenizer = Tokenizer::Load({.tokenizer_json = ReadTokenizerJson(name)});
    if (!tokenizer) {
      std::fprintf(stderr, "%s: %s\n", name.c_str(), tokenizer.error().message().c_str());
      std::exit(1);
    }
    it = loaded.emplace(name, std::move(*tokenizer)).first;
  }
  return it->second;
}

const std::vector<std::string>& MixedTexts() {
  static const std::vector<std::string> texts = [] {
    CorpusGenerator generator(ReadJson(TokenizerGoldens() / "corpus.json"), kSeed);
    std::vector<std::string> chunks;
    for (size_t bytes = 0; bytes < kMixedBytes; bytes += chunks.back().size()) {
      chunks.push_back(generator.Chunk());
    }
    return chunks;
  }();
  return texts;
}

void EncodeAll(benchmark::State& state, const std::string& name,
               const std::vector<std::string>& texts) {
  const Tokenizer& tokenizer = LoadOnce(name);
  size_t bytes = 0;
  for (auto _ : state) {
    for (const std::string& text : texts) {
      benchmark::DoNotOptimize(tokenizer.Encode(text));
      bytes += text.size();
    }
  }
  state.SetBytesProcessed(static_cast<int64_t>(bytes));
}

int RegisterAll() {
  std::vector<std::string> names = NamesIn(TokenizerGoldens() / "families");
  for (const std::string& name : NamesIn(TokenizerGoldens() / "published")) {
    if (!ReadPublishedTokenizer(name).empty()) names.push_back(name);
  }
  for (const std::string& name : names) {
    benchmark::RegisterBenchmark(("mixed/" + name).c_str(), [name](benchmark::State& state) {
      EncodeAll(state, name, MixedTexts());
    })->Unit(benchmark::kMillisecond);
    for (const char* character : {"a", " ", "!"}) {
      const std::vector<std::string> run{std::string(kRunBytes, character[0])};
      benchmark::RegisterBenchmark(
          ("run of '" + std::string(character) + "'/" + name).c_str(),
          [name, run](benchmark::State& state) { EncodeAll(state, name, run); })
          ->Unit(benchmark::kMillisecond);
    }
    benchmark::RegisterBenchmark(("load/" + name).c_str(), [name](benchmark::State& state) {
      const TokenizerFiles files{.tokenizer_json = ReadTokenizerJson(name)};
      for (auto _ : state) benchmark::DoNotOptimize(Tokenizer::Load(files));
    })->Unit(benchmark::kMillisecond);
  }
  return 0;
}

const int kRegistered = RegisterAll();

}  // namespace
}  // namespace nibble::text
