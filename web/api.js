// The server's public API as this page uses it: /health, /v1/models and /v1/chat/completions.
// Every failure becomes an ApiError with a sentence a reader understands.

export class ApiError extends Error {
  // kind: "network", "key", "server", "stream".
  constructor(kind, message, status = 0) {
    super(message);
    this.kind = kind;
    this.status = status;
  }
}

const LOST = "The server cannot be reached. Is nibble still running?";

let apiKey = "";
export function setApiKey(key) {
  apiKey = key;
}

function headers(extra = {}) {
  return apiKey ? {...extra, Authorization: `Bearer ${apiKey}`} : extra;
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), {...options, headers: headers(options.headers)});
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError("network", LOST);
  }
  if (response.ok) return response;
  throw describeRefusal(response.status, await errorMessage(response));
}

async function errorMessage(response) {
  try {
    const {error} = await response.json();
    return typeof error === "string" ? error : String(error.message);
  } catch {
    return "";  // a proxy's page, or nothing
  }
}

function describeRefusal(status, message) {
  const because = message ? `: ${message}` : ".";
  if (status === 401) return new ApiError("key", "This server needs a valid API key.", status);
  if (status === 503) return new ApiError("server", `The server cannot take this now${because}`, status);
  if (status === 504) return new ApiError("server", `The server ran out of time${because}`, status);
  if (status >= 500) return new ApiError("server", `The server failed with status ${status}${because}`, status);
  return new ApiError("server", `The server refused the request${because}`, status);
}

// {state: "ready"} | {state: "loading" | "draining" | "failed", stage, percent, message}
// | {state: "unreachable", message}
export async function fetchHealth() {
  let response;
  try {
    response = await fetch(new URL("health", document.baseURI), {cache: "no-store"});
  } catch {
    return {state: "unreachable", message: LOST};
  }
  if (response.ok) return {state: "ready"};
  const body = await response.json().catch(() => ({}));
  const message = body.error?.message ?? `The server answers with status ${response.status}.`;
  const known = body.stage === "failed" || body.stage === "draining";
  return {state: known ? body.stage : "loading", stage: body.stage, percent: body.percent, message};
}

// [{id, max_model_len}, ...]
export async function listModels() {
  const response = await request("v1/models");
  return (await response.json()).data;
}

// Sends body as a streamed chat completion and calls onChunk with every parsed chunk. Returns when the
// stream is complete; throws ApiError, or AbortError when signal stops it.
export async function streamChat(body, signal, onChunk) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: {"Content-Type": "application/json"},
    body: JSON.stringify({...body, stream: true, stream_options: {include_usage: true, continuous_usage_stats: true}}),
    signal,
  });
  let complete = false;
  for await (const data of serverSentEvents(response.body)) {
    if (data === "[DONE]") {
      complete = true;
      break;
    }
    const chunk = parseChunk(data);
    if (chunk.error) {
      throw new ApiError("stream", `The answer broke off: ${chunk.error.message ?? chunk.error}`, chunk.error.code);
    }
    onChunk(chunk);
  }
  if (!complete) throw new ApiError("network", "The connection was lost before the answer was complete.");
}

function parseChunk(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError("stream", "The answer broke off: the server sent something that is not JSON.");
  }
}

// The data of each event of a text/event-stream; comments and other fields are skipped.
async function* serverSentEvents(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let pending = "";
  let data = [];
  try {
    while (true) {
      const {done, value} = await read(reader);
      if (done) return;
      pending += decoder.decode(value, {stream: true});
      const lines = pending.split("\n");
      pending = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        } else if (line === "" && data.length > 0) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("network", "The connection was lost before the answer was complete.");
  }
}
