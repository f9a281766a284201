// nibble serve: the port opens at once, loading is told by /health, then requests are answered
// until SIGTERM.
#include <cstdio>
#include <filesystem>
#include <thread>
#include <utility>

#include "apps/load.h"
#include "apps/signals.h"
#include "apps/web_pages.h"
#include "base/file.h"
#include "base/log.h"
#include "server/server.h"

namespace nibble::apps {
namespace {

Result<server::ServedModelOptions> DescribeService(const ServeOptions& options,
                                                   const LoadedModel& loaded) {
  server::ServedModelOptions served{
      .engine = loaded.engine,
      .names = options.served_model_names,
      .root = options.model.model,
      .tokenizer_config_json = loaded.tokenizer_config_json,
      .special_tokens_map_json = loaded.special_tokens_map_json,
      .override_generation_config = options.override_generation_config,
      .chat_template = loaded.chat_template,
      .tool_use_template = loaded.tool_use_template,
      .default_chat_template_kwargs = options.default_chat_template_kwargs,
      .tool_parser = options.tool_parser,
      .reasoning_parser = options.reasoning_parser,
      .max_logprobs = options.max_logprobs,
  };
  if (served.names.empty()) served.names = {options.model.model};
  if (options.generation_config == "auto") {
    served.generation_config_json = loaded.generation_config_json;
  } else if (options.generation_config != "vllm") {
    return Fail(Code::kInvalidArgument,
                "--generation-config {}: expected auto (the model's) or vllm (neutral defaults)",
                options.generation_config);
  }
  if (!options.chat_template.empty()) {
    NIBBLE_ASSIGN(served.chat_template, ReadFile(options.chat_template, 1 << 20));
    served.tool_use_template.clear();
  }
  return served;
}

Result<LoadedModel> LoadAndOpen(const ServeOptions& options, server::Server& server) {
  NIBBLE_ASSIGN(LoadedModel loaded,
                LoadEngine(options.model, [&](std::string_view stage, double fraction) {
                  server.SetStage(stage, fraction);
                }));
  NIBBLE_ASSIGN(server::ServedModelOptions served, DescribeService(options, loaded));
  NIBBLE_TRY(server.SetReady(std::move(served)));
  return loaded;
}

}  // namespace

int Serve(const ServeOptions& options) {
  server::ServerOptions network;
  network.host = options.host;
  network.port = static_cast<uint16_t>(options.port);
  network.api_keys = options.api_keys;
  network.allowed_origins = options.allowed_origins;
  network.allowed_hosts = options.allowed_hosts;
  network.pages = WebPages();
  network.request_timeout =
      std::chrono::milliseconds(static_cast<int64_t>(options.request_timeout * 1e3));
  network.shutdown_timeout =
      std::chrono::milliseconds(static_cast<int64_t>(options.shutdown_timeout * 1e3));
  const ExitOnSignal exit_on_signal(0);  // until Run takes the signals over
  auto server = server::Server::Start(std::move(network));
  if (!server) return Report(server.error());

  auto loaded = LoadAndOpen(options, **server);
  if (!loaded) return Report(loaded.error());
  LogInfo("Application startup complete. Chat and API at {}", (*server)->url());
  const int exit_code = (*server)->Run();
  server->reset();  // before the model and the threads that it answers from
  return exit_code;
}

}  // namespace nibble::apps
