/* Helpers, the two languages, and the colour scheme.
   No text from outside ever becomes markup: nodes are made by `make`, and text is set as text. The header
   Content-Security-Policy of the page forbids the ways round this (`require-trusted-types-for 'script'`). */

const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

/** A node: make("p", {class: "soft", on: {click}}, "text", child, …). A child that is null or false is left out. */
function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== false && child !== undefined));
  return node;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  svg.setAttribute("aria-hidden", "true");
  return svg;
}

/** A button that shows an icon and says what it does; it keeps `name`, by which it gets the focus back. */
function iconButton(name, key, click, more = {}) {
  return make("button", { type: "button", class: "quiet icon", title: t(key), "aria-label": t(key), "data-act": key,
    on: { click }, ...more }, icon(name));
}

/** What the browser keeps for this page; a browser that refuses to keep anything is no reason to fail. */
const kept = {
  get(store, key) {
    try { return store().getItem(`foundry.${key}`); } catch { return null; }
  },
  set(store, key, value) {
    try {
      if (value === null) store().removeItem(`foundry.${key}`);
      else store().setItem(`foundry.${key}`, value);
      return true;
    } catch { return false; }
  },
};
const lasting = () => window.localStorage;
const forThisTab = () => window.sessionStorage;

/* languages */

let language = kept.get(lasting, "language")
  || (navigator.languages.map((tag) => tag.slice(0, 2).toLowerCase()).find((tag) => tag === "en" || tag === "zh") || "en");

/** The text of a key in the chosen language, with {names} filled in. */
function t(key, values = {}) {
  const text = DATA.words[key][language];
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

const number = (value, digits = 0, more = {}) =>
  new Intl.NumberFormat(language === "zh" ? "zh-CN" : "en", { maximumFractionDigits: digits, ...more }).format(value);

/** A probability in percent: three digits of it, since those of a model span many orders of magnitude. */
function percent(p) {
  const sign = language === "zh" ? "%" : " %";
  if (p >= 0.9995 && p < 1) return `> 99.9${sign}`;
  if (p > 0 && p < 0.00001) return `< 0.001${sign}`;
  return `${number(100 * p, 20, { minimumSignificantDigits: 3, maximumSignificantDigits: 3 })}${sign}`;
}

function translatePage() {
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
  for (const node of document.querySelectorAll("[data-t-label]")) {
    node.setAttribute("aria-label", t(node.dataset.tLabel));
    if (node.tagName === "BUTTON") node.title = t(node.dataset.tLabel);
  }
  for (const node of document.querySelectorAll("[data-t-title]")) node.title = t(node.dataset.tTitle);
  for (const node of document.querySelectorAll("[data-t-placeholder]")) node.placeholder = t(node.dataset.tPlaceholder);
  $("language").textContent = language === "zh" ? "English" : "中文";
  $("language").lang = language === "zh" ? "en" : "zh-Hans";
}

/* light and dark */

const THEMES = ["system", "light", "dark"];
const systemIsDark = window.matchMedia("(prefers-color-scheme: dark)");
let theme = kept.get(lasting, "theme") || "system";

function showTheme() {
  document.documentElement.dataset.theme = theme === "system" ? (systemIsDark.matches ? "dark" : "light") : theme;
  const text = t(`theme_${theme}`);
  $("theme").title = text;
  $("theme").setAttribute("aria-label", text);
}

function nextTheme() {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  kept.set(lasting, "theme", theme === "system" ? null : theme);
  showTheme();
}

/* announcements for screen readers: the streaming text by whole sentences, so that it can be followed */

const speech = {
  waiting: "",
  add(text) {
    this.waiting += text;
    const end = Math.max(...[".", "!", "?", "。", "！", "？", "\n"].map((mark) => this.waiting.lastIndexOf(mark)));
    if (end < 0 && this.waiting.length < 200) return;
    const cut = end < 0 ? this.waiting.length : end + 1;
    this.say(this.waiting.slice(0, cut));
    this.waiting = this.waiting.slice(cut);
  },
  end(text) {
    this.say(this.waiting);
    this.waiting = "";
    this.say(text);
  },
  say(text) {
    if (text.trim()) $("live").append(make("p", {}, text));
    while ($("live").children.length > 8) $("live").firstChild.remove();
  },
};

/** What scrolls: the conversation, or on a narrow screen the page as a whole. */
const scroller = () => (getComputedStyle($("view")).overflowY === "visible" ? document.scrollingElement : $("view"));
const atEnd = () => scroller().scrollHeight - scroller().scrollTop - scroller().clientHeight < 80;
const toEnd = () => { scroller().scrollTop = scroller().scrollHeight; };

/** A button that copies a text and says so by its icon. */
function copyButton(name, key, textOf) {
  return iconButton(name, key, async (event) => {
    const button = event.currentTarget, text = textOf();
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else { // a page of another machine without TLS
      const box = make("textarea", { class: "sr" });
      box.value = text;
      document.body.append(box);
      box.select();
      document.execCommand("copy");
      box.remove();
      button.focus();
    }
    speech.say(t("copied"));
    button.replaceChildren(icon("check"));
    setTimeout(() => button.replaceChildren(icon(name)), 1500);
  });
}

function saveFile(name, kind, text) {
  const address = URL.createObjectURL(new Blob([text], { type: kind }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
