// The downloader against tests/fake_hub.py, which cuts connections, redirects and lies.
#include "formats/hub.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <thread>

#include "base/file.h"
#include "base/log.h"
#include "formats/hub_download.h"
#include "formats/hub_http.h"
#include "testing/source_folder.h"
#include "testing/temp_folder.h"

namespace nibble::formats {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kCommit = "0123456789abcdef0123456789abcdef01234567";
constexpr int64_t kWeightBytes = 256 * 2000;

// The Python process; it ends when its stdin closes.
class FakeHub {
 public:
  FakeHub() {
    int to_child[2];
    int from_child[2];
    if (::pipe2(to_child, O_CLOEXEC) != 0 || ::pipe2(from_child, O_CLOEXEC) != 0) return;
    const std::string script = SourceFolder() / "tests/fake_hub.py";
    child_ = ::fork();
    if (child_ == 0) {
      ::dup2(to_child[0], 0);
      ::dup2(from_child[1], 1);
      ::execlp("python3", "python3", script.c_str(), static_cast<char*>(nullptr));
      ::_exit(127);
    }
    ::close(to_child[0]);
    ::close(from_child[1]);
    stdin_ = to_child[1];
    FILE* out = ::fdopen(from_child[0], "r");
    if (std::fscanf(out, "%d", &port_) != 1) port_ = 0;
    std::fclose(out);
  }
  ~FakeHub() {
    ::close(stdin_);
    ::waitpid(child_, nullptr, 0);
  }
  int port() const { return port_; }
  std::string endpoint() const { return fmt::format("http://127.0.0.1:{}", port_); }

 private:
  pid_t child_ = -1;
  int stdin_ = -1;
  int port_ = 0;
};

class Hub : public testing::Test {
 protected:
  static void SetUpTestSuite() { shared_hub_ = std::make_unique<FakeHub>(); }
  static void TearDownTestSuite() { shared_hub_.reset(); }

  void SetUp() override {
    if (hub_.port() == 0) GTEST_SKIP() << "python3 cannot run tests/fake_hub.py";
    SetLogLevel(LogLevel::kOff);
    options_.endpoint = hub_.endpoint();
    ASSERT_TRUE(HttpClient::Make()->Perform({.url = hub_.endpoint() + "/_reset"}));
    options_.cache = cache_.path();
    options_.quiet = true;
    options_.first_delay_ms = 1;
  }
  void TearDown() override { SetLogLevel(LogLevel::kInfo); }

  Result<std::string> Pull(std::string_view name) {
    return PullModel(RepoId{.name = fmt::format("t/{}", name)}, options_);
  }
  Error PullError(std::string_view name) {
    const auto result = Pull(name);
    EXPECT_FALSE(result) << *result;
    return result ? Error(Code::kInternal, "") : result.error();
  }
  std::string Folder(std::string_view name) const {
    return fmt::format("{}/models--t--{}", options_.cache, name);
  }
  // Requests that the hub has seen in this test.
  std::string Log() const {
    auto client = HttpClient::Make();
    const auto response = client->Perform({.url = hub_.endpoint() + "/_log"});
    return response ? response->body : "";
  }
  int Requests() const {
    const std::string log = Log();
    return static_cast<int>(std::ranges::count(log, '\n')) + (log.empty() ? 0 : 1);
  }
  std::vector<std::string> Incomplete(std::string_view name) const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(Folder(name) + "/blobs")) {
      if (entry.path().extension() == ".incomplete") found.push_back(entry.path().string());
    }
    return found;
  }
  void ExpectWhole(const Result<std::string>& snapshot) {
    ASSERT_TRUE(snapshot) << snapshot.error().message();
    EXPECT_EQ(*ReadFile(*snapshot + "/config.json"), R"({"model_type": "llama"})");
    EXPECT_EQ(fs::file_size(*snapshot + "/model.safetensors"), kWeightBytes);
  }

  static inline std::unique_ptr<FakeHub> shared_hub_;
  const FakeHub& hub_ = *shared_hub_;
  TempFolder cache_;
  HubOptions options_;
};

TEST_F(Hub, WritesTheLayoutOfHuggingFace) {
  const auto snapshot = Pull("good");
  ExpectWhole(snapshot);
  EXPECT_EQ(*snapshot, fmt::format("{}/snapshots/{}", Folder("good"), kCommit));
  EXPECT_EQ(*ReadFile(Folder("good") + "/refs/main"), kCommit);
  const std::string link = fs::read_symlink(*snapshot + "/config.json").string();
  EXPECT_TRUE(link.starts_with("../../blobs/")) << link;
  EXPECT_EQ(link.size(), std::string("../../blobs/").size() + 40);
  const std::string nested = *snapshot + "/additional_chat_templates/tool use.jinja";
  EXPECT_TRUE(fs::read_symlink(nested).string().starts_with("../../../blobs/"));
  EXPECT_EQ(*ReadFile(nested), "{{ messages }}");
  EXPECT_FALSE(fs::exists(*snapshot + "/README.md"));
  EXPECT_FALSE(fs::exists(*snapshot + "/onnx"));
  EXPECT_TRUE(Incomplete("good").empty());
  EXPECT_TRUE(fs::exists(options_.cache + "/.locks/models--t--good"));
}

TEST_F(Hub, SecondPullAsksForTheListAlone) {
  ASSERT_TRUE(Pull("good"));
  const int before = Requests();
  ExpectWhole(Pull("good"));
  EXPECT_EQ(Requests(), before + 1);
}

TEST_F(Hub, ResumesCutConnections) {
  ExpectWhole(Pull("cut"));
  EXPECT_NE(Log().find("cdn GET /cut/model.safetensors bytes=256000- "), std::string::npos);
}

TEST_F(Hub, StartsOverWhereRangeIsIgnored) { ExpectWhole(Pull("no-range")); }

TEST_F(Hub, ContinuesThePartialFileOfAnEarlierRun) {
  ASSERT_TRUE(Pull("good"));
  const auto blob =
      fs::read_symlink(fmt::format("{}/snapshots/{}/model.safetensors", Folder("good"), kCommit))
          .filename();
  const std::string path = fmt::format("{}/blobs/{}", Folder("good"), blob.string());
  fs::rename(path, path + ".incomplete");
  fs::resize_file(path + ".incomplete", 1000);
  ExpectWhole(Pull("good"));
  EXPECT_NE(Log().find("bytes=1000-"), std::string::npos);

  // A partial file of other content is noticed by the hash and fetched anew.
  fs::remove(path);
  ASSERT_TRUE(WriteFileAtomic(path + ".incomplete", std::string(2000, '?')));
  ExpectWhole(Pull("good"));

  // One that is too long, too.
  fs::remove(path);
  ASSERT_TRUE(WriteFileAtomic(path + ".incomplete", std::string(kWeightBytes + 5, '?')));
  ExpectWhole(Pull("good"));
}

TEST_F(Hub, RetriesTransientErrors) {
  ExpectWhole(Pull("flaky"));
  ExpectWhole(Pull("limited"));
  ExpectWhole(Pull("expired"));
}

TEST_F(Hub, GivesUpWithAReason) {
  options_.attempts = 3;
  const Error error = PullError("down");
  EXPECT_EQ(error.code(), Code::kUnavailable);
  EXPECT_NE(error.message().find("HTTP 500: broken"), std::string::npos) << error.message();
  EXPECT_EQ(Requests(), 3);
}

TEST_F(Hub, NoticesWrongSizes) {
  EXPECT_EQ(PullError("short-list").message(),
            "model.safetensors: the hub lists 511000 bytes, the server sends 512000");
  EXPECT_EQ(PullError("long-list").message(),
            "model.safetensors: the hub lists 513000 bytes, the server sends 512000");
  EXPECT_FALSE(fs::exists(Folder("short-list") + "/refs/main"));
}

TEST_F(Hub, NoticesWrongContent) {
  const Error error = PullError("bad-hash");
  EXPECT_EQ(error.code(), Code::kCorruption);
  EXPECT_NE(error.message().find("git SHA-1 is "), std::string::npos) << error.message();
  EXPECT_TRUE(Incomplete("bad-hash").empty());
  ExpectWhole(Pull("bad-once"));
}

TEST_F(Hub, KeepsTheTokenFromOtherHosts) {
  options_.token = "secret";
  ExpectWhole(Pull("private"));
  const std::string log = Log();
  EXPECT_NE(log.find("hub GET /api/models/t/private/revision/main - token"), std::string::npos);
  EXPECT_NE(log.find("cdn GET /private/model.safetensors - no-token"), std::string::npos);
  EXPECT_EQ(log.find("cdn GET /private/model.safetensors - token"), std::string::npos);
}

TEST_F(Hub, NamesTheCauseOfARefusal) {
  const Error gated = PullError("gated");
  EXPECT_EQ(gated.code(), Code::kUnauthenticated);
  EXPECT_NE(gated.message().find("accept its terms at " + hub_.endpoint() + "/t/gated"),
            std::string::npos);
  for (const char* name : {"missing", "unauthorized", "private"}) {
    const Error error = PullError(name);
    EXPECT_EQ(error.code(), Code::kNotFound) << name;
    EXPECT_NE(error.message().find("no HF_TOKEN is set"), std::string::npos) << error.message();
  }
  EXPECT_NE(PullError("no-revision").message().find("has no revision 'main'"), std::string::npos);
  EXPECT_NE(PullError("loop").message().find("more than 10 redirects"), std::string::npos);
  EXPECT_NE(PullError("only-gguf").message().find("GGUF files: download one"), std::string::npos);
}

TEST_F(Hub, RefusesUnsafeNames) {
  EXPECT_NE(PullError("evil").message().find("unsafe name"), std::string::npos);
  EXPECT_FALSE(fs::exists(options_.cache + "/evil.json"));
}

TEST_F(Hub, FollowsARename) { ExpectWhole(Pull("old-name")); }

TEST_F(Hub, ReadsSizesFromHeadersWhereTheListHasNone) { ExpectWhole(Pull("no-blobs")); }

TEST_F(Hub, ResolvesRevisions) {
  const auto resolve = [this](std::string_view text) {
    return PullModel(*ParseRepoId(text), options_);
  };
  ExpectWhole(resolve("t/good@refs/pr/1"));
  EXPECT_EQ(*ReadFile(Folder("good") + "/refs/refs/pr/1"), kCommit);
  ExpectWhole(resolve(fmt::format("t/good@{}", kCommit)));
  EXPECT_FALSE(fs::exists(Folder("good") + "/refs/main"));
}

TEST_F(Hub, WorksWithoutSymlinks) {
  options_.symlinks = false;
  const auto snapshot = Pull("good");
  ExpectWhole(snapshot);
  EXPECT_TRUE(fs::is_regular_file(fs::symlink_status(*snapshot + "/config.json")));
}

TEST_F(Hub, ParallelPullsShareOneDownload) {
  std::vector<std::thread> threads;
  std::vector<Result<std::string>> results(4, Fail(Code::kInternal, "not run"));
  for (auto& result : results) {
    threads.emplace_back([&] { result = Pull("good"); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) ExpectWhole(result);
  const std::string log = Log();
  const std::string_view wanted = "cdn GET /good/model.safetensors";
  int downloads = 0;
  for (size_t at = log.find(wanted); at != std::string::npos; at = log.find(wanted, at + 1)) {
    ++downloads;
  }
  EXPECT_EQ(downloads, 1);
}

TEST_F(Hub, ResolveModelPrefersTheCache) {
  ExpectWhole(ResolveModel("t/good", options_));
  const int before = Requests();
  ExpectWhole(ResolveModel("t/good", options_));
  EXPECT_EQ(Requests(), before);
  options_.offline = true;
  ExpectWhole(ResolveModel("t/good", options_));
  // An incomplete snapshot is no answer.
  fs::remove(fmt::format("{}/snapshots/{}/model.safetensors", Folder("good"), kCommit));
  const auto incomplete = ResolveModel("t/good", options_);
  ASSERT_FALSE(incomplete);
  EXPECT_EQ(incomplete.error().code(), Code::kUnavailable);
  EXPECT_NE(incomplete.error().message().find("HF_HUB_OFFLINE"), std::string::npos);
  options_.offline = false;
  ExpectWhole(ResolveModel("t/good", options_));
}

TEST_F(Hub, UnreachableEndpointIsNamed) {
  options_.endpoint = "http://127.0.0.1:1";
  options_.attempts = 2;
  const Error error = PullError("good");
  EXPECT_EQ(error.code(), Code::kUnavailable);
  EXPECT_NE(error.message().find("http://127.0.0.1:1"), std::string::npos) << error.message();
}

TEST(ResolveModel, TakesFoldersAndFilesFirst) {
  const TempFolder folder;
  HubOptions offline;
  offline.offline = true;
  offline.cache = folder.path() + "/cache";
  folder.Write("config.json", "{}");
  EXPECT_EQ(*ResolveModel(folder.path(), offline), folder.path());
  const std::string gguf = folder.Write("model.gguf", "GGUF");
  EXPECT_EQ(*ResolveModel(gguf, offline), gguf);

  const auto message = [&](const std::string& model) {
    return ResolveModel(model, offline).error().message();
  };
  EXPECT_NE(message(folder.Write("model.bin", "x")).find("a file, but not a .gguf file"),
            std::string::npos);
  fs::create_directory(folder.path() + "/empty");
  EXPECT_NE(message(folder.path() + "/empty").find("a folder, but without config.json"),
            std::string::npos);
  EXPECT_NE(message("nosuchthing").find("Expected a folder with config.json"), std::string::npos);
  EXPECT_NE(message("org/name").find("no folder or file of this name"), std::string::npos)
      << message("org/name");
}

TEST(HubCache, ParsesRepositoryNames) {
  EXPECT_EQ(ParseRepoId("org/name")->revision, "main");
  EXPECT_EQ(ParseRepoId("org/name@v1.0")->revision, "v1.0");
  EXPECT_EQ(ParseRepoId("org/name@refs/pr/1")->revision, "refs/pr/1");
  for (const char* bad :
       {"", "name", "a/b/c", "/name", "org/", "../x", "org/..", "org/name@", "org/name@../x",
        "o rg/name", "org/na--me", "https://x/y", "./models/x"}) {
    EXPECT_FALSE(ParseRepoId(bad)) << bad;
  }
}

TEST(HubCache, KnowsUnsafePaths) {
  for (const char* good : {"a.json", "sub/a.json", "with space", "..a", "a..b/c"}) {
    EXPECT_TRUE(IsSafeRepoPath(good)) << good;
  }
  for (const char* bad :
       {"", "/a", "a/", "a//b", "..", "../a", "a/../b", "a/./b", "a\\b", "C:a", "a\nb"}) {
    EXPECT_FALSE(IsSafeRepoPath(bad)) << bad;
  }
}

TEST(HubCache, PicksWhatAnEngineNeeds) {
  for (const char* wanted :
       {"config.json", "model-00001-of-00002.safetensors", "chat_template.jinja", "tokenizer.model",
        "tiktoken.model", "tekken.json", "merges.txt", "additional_chat_templates/x.jinja"}) {
    EXPECT_TRUE(IsWantedFile(wanted)) << wanted;
  }
  for (const char* other : {"pytorch_model.bin", "original/params.json", "consolidated.safetensors",
                            "metal/model.safetensors", "x.gguf", "README.md", ".gitattributes"}) {
    EXPECT_FALSE(IsWantedFile(other)) << other;
  }
}

HubOptions OptionsOf(const std::map<std::string, std::string, std::less<>>& environment) {
  return ReadHubOptions([&](std::string_view name) -> std::optional<std::string> {
    const auto found = environment.find(name);
    return found == environment.end() ? std::nullopt : std::optional(found->second);
  });
}

TEST(HubCache, ReadsTheEnvironment) {
  EXPECT_EQ(OptionsOf({{"HOME", "/h"}}).cache, "/h/.cache/huggingface/hub");
  EXPECT_EQ(OptionsOf({{"XDG_CACHE_HOME", "/x"}}).cache, "/x/huggingface/hub");
  EXPECT_EQ(OptionsOf({{"HOME", "/h"}, {"HF_HOME", "~/hf"}}).cache, "/h/hf/hub");
  EXPECT_EQ(OptionsOf({{"A", "b"}, {"HF_HUB_CACHE", "/c/$A/${A}/$NO"}}).cache, "/c/b/b/$NO");
  EXPECT_EQ(OptionsOf({{"HF_ENDPOINT", "https://mirror/"}}).endpoint, "https://mirror");
  EXPECT_EQ(OptionsOf({{"HF_TOKEN", " abc\r\n"}}).token, "abc");
  EXPECT_EQ(OptionsOf({{"HF_TOKEN", "abc"}, {"HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"}}).token, "");
  EXPECT_TRUE(OptionsOf({{"HF_HUB_OFFLINE", "yes"}}).offline);
  EXPECT_FALSE(OptionsOf({{"HF_HUB_OFFLINE", "0"}}).offline);
  EXPECT_EQ(OptionsOf({{"HF_HUB_DOWNLOAD_TIMEOUT", "30"}}).download_timeout_s, 30);

  const TempFolder home;
  home.Write("token", "from-file\n");
  EXPECT_EQ(OptionsOf({{"HF_HOME", home.path()}}).token, "from-file");
  EXPECT_EQ(OptionsOf({{"HF_TOKEN_PATH", home.path() + "/token"}}).token, "from-file");
}

TEST(VerifyBlob, KnowsGitAndSha256) {
  const TempFolder folder;
  const std::string path = folder.Write("hello", "hello\n");
  EXPECT_TRUE(VerifyBlob(path, {"hello", "ce013625030ba8dba906f756967f9e9ca394464a", 6}));
  EXPECT_TRUE(VerifyBlob(
      path, {"hello", "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03", 6}));
  EXPECT_FALSE(VerifyBlob(path, {"hello", "ce013625030ba8dba906f756967f9e9ca394464b", 6}));
  EXPECT_FALSE(VerifyBlob(path, {"hello", "ce013625030ba8dba906f756967f9e9ca394464a", 7}));
}

}  // namespace
}  // namespace nibble::formats
