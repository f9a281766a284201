// What the page remembers: conversation and settings in localStorage, the API key until the tab closes.
// Storage may be full, switched off or filled by another version: then the page forgets, nothing else.

const CONVERSATION = "nibble.conversation";
const SETTINGS = "nibble.settings";
const KEY = "nibble.key";

function load(key, fallback) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? fallback;
  } catch {
    return fallback;
  }
}

function save(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    // full or forbidden
  }
}

function isMessage(value) {
  return (value?.role === "user" || value?.role === "assistant") && typeof value.content === "string";
}

// A message is {role, content} and, for answers, reasoning, note, error and stats where there are any.
export function loadConversation() {
  const messages = load(CONVERSATION, []);
  return Array.isArray(messages) && messages.every(isMessage) ? messages : [];
}

export function saveConversation(messages) {
  save(CONVERSATION, messages);
}

// {system: string, temperature: number | null, maxTokens: number | null}; null leaves it to the server.
export function loadSettings() {
  const stored = load(SETTINGS, {});
  return {
    system: typeof stored.system === "string" ? stored.system : "",
    temperature: Number.isFinite(stored.temperature) ? stored.temperature : null,
    maxTokens: Number.isInteger(stored.maxTokens) ? stored.maxTokens : null,
  };
}

export function saveSettings(settings) {
  save(SETTINGS, settings);
}

export function loadKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

export function saveKey(key) {
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // forbidden: the key lives as long as the page
  }
}
