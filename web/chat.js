// The chat page: wires the conversation, the composer, the settings and the server's state together.
import {ApiError, fetchHealth, listModels, setApiKey, streamChat} from "./api.js";
import {AnswerView, QuestionView} from "./message_view.js";
import {loadConversation, loadKey, loadSettings, saveConversation, saveKey, saveSettings} from "./store.js";

const page = Object.fromEntries(
    [...document.querySelectorAll("[id]")].map((node) => [node.id.replace(/-(\w)/g, (_, c) => c.toUpperCase()), node]));

const POLL_LOADING_MS = 500;
const POLL_READY_MS = 15_000;

let messages = loadConversation();
let settings = loadSettings();
let views = [];         // of messages, by index
let model = null;       // the card of /v1/models, once the server is ready
let running = null;     // AbortController of the answer under way
let follow = true;      // the newest text is kept in sight
let keyWanted = false;

// ---- Conversation ----

function show(message) {
  const view = message.role === "user"
      ? new QuestionView(message)
      : new AnswerView(message, {copy: (event) => copyText(message.content, event.currentTarget), retry: null});
  views.push(view);
  page.log.append(view.root);
  return view;
}

function showConversation() {
  views = [];
  page.log.replaceChildren();
  messages.forEach(show);
  refresh();
  scrollToEnd();
}

// Brings everything that depends on the state up to date.
function refresh() {
  page.welcome.hidden = messages.length > 0;
  page.send.hidden = running !== null;
  page.stop.hidden = running === null;
  page.send.disabled = model === null || page.prompt.value.trim() === "";
  page.newChat.disabled = messages.length === 0;
  views.forEach((view, index) => {
    const last = index === views.length - 1 && running === null;
    if (view instanceof AnswerView) view.setRetry(last ? retry : null);
  });
}

// What the model is told: the system prompt and every turn that has an answer, then the new question.
// A question without an answer would put two user turns side by side, which many templates refuse.
function requestMessages() {
  const turns = [];
  if (settings.system.trim() !== "") turns.push({role: "system", content: settings.system});
  for (let i = 0; i < messages.length; ++i) {
    const {role, content} = messages[i];
    const next = messages[i + 1];
    const unanswered = role === "user" && next?.role === "assistant" && next.content === "" && i + 2 < messages.length;
    if (content !== "" && !unanswered) turns.push({role, content});
  }
  return turns;
}

function ask(text) {
  messages.push({role: "user", content: text});
  show(messages.at(-1));
  answer();
}

function retry() {
  if (running || model === null) return;
  messages.pop();
  views.pop().root.remove();
  answer();
}

async function answer() {
  const body = {model: model.id, messages: requestMessages()};
  if (settings.temperature !== null) body.temperature = settings.temperature;
  if (settings.maxTokens !== null) body.max_tokens = settings.maxTokens;

  const message = {role: "assistant", content: "", streaming: true};
  messages.push(message);
  const view = show(message);
  running = new AbortController();
  refresh();
  scrollToEnd();
  saveConversation(stored());
  try {
    await receive(body, message, view);
  } catch (error) {
    if (error.name === "AbortError") {
      message.note = "stopped";
    } else {
      report(error, message);
    }
  }
  message.streaming = false;
  running = null;
  saveConversation(stored());
  refresh();
  view.update(keepInSight);
}

async function receive(body, message, view) {
  const start = performance.now();
  let first = 0;
  let tokensAtFirst = 1;
  await streamChat(body, running.signal, (chunk) => {
    const choice = chunk.choices?.[0];
    const text = choice?.delta?.content ?? "";
    const reasoning = choice?.delta?.reasoning ?? choice?.delta?.reasoning_content ?? "";
    const now = performance.now();
    message.content += text;
    if (reasoning !== "") message.reasoning = (message.reasoning ?? "") + reasoning;
    if (choice?.finish_reason === "length") message.note = "cut at the token limit";
    if (chunk.usage?.completion_tokens > 0) {
      const {completion_tokens: tokens, total_tokens: context} = chunk.usage;
      if (first === 0) {
        first = now;
        tokensAtFirst = tokens;
      }
      message.stats = {
        tokens,
        context,
        contextLimit: model?.max_model_len,
        firstTokenMs: first - start,
        // The first token's time is the prompt's; what comes after it is the speed of writing. The usage
        // chunk at the end brings no token and so does not stretch the time.
        rate: choice ? rate(tokens - tokensAtFirst, now - first) : message.stats?.rate,
      };
    } else if (first === 0 && (text !== "" || reasoning !== "")) {
      first = now;
    }
    view.update(keepInSight);
  });
}

function rate(tokens, milliseconds) {
  return tokens > 0 && milliseconds > 0 ? tokens / milliseconds * 1000 : 0;
}

function report(error, message) {
  const known = error instanceof ApiError;
  message.error = known ? error.message : `The page failed: ${error.message}`;
  if (!known) console.error(error);
  if (error.kind === "key") askForKey();
  if (error.status === 404) model = null;  // the server came back with another model
  if (error.kind === "network" || error.status === 404 || error.status === 503) watchHealth();
}

function stop() {
  running?.abort();
}

function newChat() {
  stop();
  messages = [];
  saveConversation(messages);
  showConversation();
  page.prompt.focus();
}

// What is kept of an answer that still streams is what has come so far.
function stored() {
  return messages.map(({streaming, ...message}) => streaming ? {...message, note: "interrupted"} : message);
}

// ---- Scrolling ----

function scrollToEnd() {
  follow = true;
  keepInSight();
}

function keepInSight() {
  if (follow) page.scroller.scrollTop = page.scroller.scrollHeight;
}

function onScroll() {
  const {scrollTop, scrollHeight, clientHeight} = page.scroller;
  follow = scrollHeight - scrollTop - clientHeight < 60;
  page.toEnd.hidden = follow;
}

// ---- Copying ----

async function copyText(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = copyBySelection(text) ? "Copied" : "Copying failed";
  }
  setTimeout(() => (button.textContent = label), 1500);
}

// For pages that did not come over https or from this machine: browsers give those no clipboard.
function copyBySelection(text) {
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

// ---- The server's state ----

let timer = 0;

async function watchHealth() {
  clearTimeout(timer);
  if (!document.hidden) {
    const health = await fetchHealth();
    if (health.state === "ready") {
      await meetModel();
    } else {
      model = null;
    }
    if (health.state !== "ready" || model !== null) showHealth(health);
    refresh();
  }
  clearTimeout(timer);  // a second call may have come while this one waited
  timer = setTimeout(watchHealth, model === null ? POLL_LOADING_MS : POLL_READY_MS);
}

async function meetModel() {
  if (model !== null || keyWanted) return;
  try {
    model = (await listModels())[0];
  } catch (error) {
    if (error.kind === "key") {
      askForKey();
    } else {
      showHealth({state: "unreachable", message: error.message});
    }
  }
}

function showHealth({state, stage, percent, message}) {
  page.status.dataset.state = state;
  page.banner.dataset.state = state;
  page.banner.hidden = state === "ready";
  page.modelName.textContent = model?.id ?? {loading: "loading …", draining: "shutting down"}[state] ?? "not available";
  page.status.title = model?.max_model_len ? `Ready, ${model.max_model_len} tokens of context` : "";
  document.title = model ? `${model.id} · nibble` : "nibble";
  const measured = state === "loading" && Number.isFinite(percent);
  page.bannerText.textContent = measured ? `${stage}: ${Math.floor(percent)} %` : message ?? "";
  page.bannerProgress.hidden = !measured;
  if (measured) page.bannerProgress.value = percent;
}

function askForKey() {
  keyWanted = true;
  page.keyWrong.hidden = loadKey() === "";
  page.key.value = "";
  if (!page.keyDialog.open) page.keyDialog.showModal();
}

function takeKey(event) {
  event.preventDefault();
  const key = page.key.value.trim();
  saveKey(key);
  setApiKey(key);
  page.keyDialog.close();
}

// ---- Settings ----

function openSettings() {
  page.system.value = settings.system;
  page.temperature.value = settings.temperature ?? "";
  page.maxTokens.value = settings.maxTokens ?? "";
  page.settings.showModal();
}

function numberOrNull(input) {
  return input.value === "" || !input.validity.valid ? null : input.valueAsNumber;
}

function keepSettings() {
  settings = {
    system: page.system.value,
    temperature: numberOrNull(page.temperature),
    maxTokens: numberOrNull(page.maxTokens),
  };
  saveSettings(settings);
}

// ---- Composer ----

function fitPrompt() {
  page.prompt.style.height = "auto";
  page.prompt.style.height = `${page.prompt.scrollHeight}px`;
}

function submit(event) {
  event.preventDefault();
  const text = page.prompt.value.trim();
  if (text === "" || running || model === null) return;
  page.prompt.value = "";
  fitPrompt();
  ask(text);
}

function onPromptKey(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  submit(event);
}

function onKey(event) {
  if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) stop();
}

function onLogClick(event) {
  const button = event.target.closest(".copy");
  if (button) copyText(button.closest("figure").querySelector("code").textContent, button);
}

page.composer.addEventListener("submit", submit);
page.prompt.addEventListener("keydown", onPromptKey);
page.prompt.addEventListener("input", () => {
  fitPrompt();
  refresh();
});
page.stop.addEventListener("click", stop);
page.newChat.addEventListener("click", newChat);
page.openSettings.addEventListener("click", openSettings);
page.settingsForm.addEventListener("submit", (event) => {
  event.preventDefault();
  page.settings.close();
});
page.settings.addEventListener("close", keepSettings);
page.settings.addEventListener("click", (event) => {
  if (event.target === page.settings) page.settings.close();  // beside the drawer
});
page.keyForm.addEventListener("submit", takeKey);
page.keyDialog.addEventListener("close", () => {
  keyWanted = false;
  watchHealth();
});
page.log.addEventListener("click", onLogClick);
page.scroller.addEventListener("scroll", onScroll, {passive: true});
page.toEnd.addEventListener("click", scrollToEnd);
for (const example of document.querySelectorAll(".example")) {
  example.addEventListener("click", () => {
    page.prompt.value = example.textContent;
    fitPrompt();
    refresh();
    page.prompt.focus();
  });
}
document.addEventListener("keydown", onKey);
document.addEventListener("visibilitychange", () => document.hidden || watchHealth());
window.addEventListener("pagehide", () => running && saveConversation(stored()));

setApiKey(loadKey());
showConversation();
watchHealth();
