/* Tokens: which characters belong to which, their colours, and the card with the alternatives. */

const LIMITS = [0.5, 1, 2, 3, 5, 7, 10]; // bits, the lower ends of the shades 1 to 7
const bitsOf = (logprob) => -logprob / Math.LN2;
const shade = (bits) => LIMITS.filter((limit) => bits >= limit).length;
const encoder = new TextEncoder();
const tokensOf = new WeakMap(); // node → its tokens

/** One token as the page keeps it: {text, bytes, p: log-probability or null, top: [[text, log-probability], …]}. */
function fromChat(entry) {
  return { text: entry.token, bytes: entry.bytes || [], p: entry.logprob, // a control symbol has no bytes
   
    top: (entry.top_logprobs || []).map((other) => [other.token, other.logprob]) };
}

/** In a completion the token itself is listed beside the alternatives even if it is not one of them. */
function fromCompletion(logprobs) {
  return logprobs.tokens.map((text, i) => ({ text, bytes: bytesOf(text), p: logprobs.token_logprobs[i],
    top: Object.entries(logprobs.top_logprobs?.[i] || {}).sort((a, b) => b[1] - a[1]).slice(0, DATA.limits.alternatives) }));
}

/** The bytes of a token's text; a token that is a part of a character comes as bytes:\xe4, as in OpenAI's API. */
function bytesOf(text) {
  const escaped = /^bytes:((?:\\x[0-9a-f]{2})+)$/i.exec(text);
  return escaped ? escaped[1].split("\\x").slice(1).map((hex) => parseInt(hex, 16)) : [...encoder.encode(text)];
}

/** Joins the text of a stream with its tokens. The text that is shown is always the API's own; tokens only mark it.
    `add` returns the spans that are complete: [text, tokens]. A character of several tokens is one span. */
class Aligner {
  constructor() { this.rest = ""; this.tokens = []; }

  add(text, tokens) {
    this.rest += text;
    this.tokens.push(...tokens);
    const spans = [];
    for (let span = this.next(); span; span = this.next()) spans.push(span);
    if (this.rest && !this.tokens.length) spans.push(this.flush());
    return spans;
  }

  next() {
    const bytes = [];
    for (let n = 1; this.rest && n <= this.tokens.length; n++) {
      bytes.push(...this.tokens[n - 1].bytes);
      const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(new Uint8Array(bytes)); // � for a part of a character
      if (text && this.rest.startsWith(text)) {
        this.rest = this.rest.slice(text.length);
        return [text, this.tokens.splice(0, n)];
      }
      if (text.startsWith(this.rest)) return null; // the server holds the rest of it back
    }
    return bytes.length > 16 ? this.flush() : null; // these are not the tokens of this text
  }

  /** What is left at the end: a text that a stop string cut keeps the tokens it began with. */
  flush() {
    const span = [this.rest, this.tokens];
    this.rest = "";
    this.tokens = [];
    return span;
  }
}

function spanOf([text, tokens]) {
  const bits = tokens.reduce((sum, token) => sum + (token.p === null ? 0 : bitsOf(token.p)), 0);
  const scored = tokens.some((token) => token.p !== null);
  const word = text.trimStart() || text; // a space at the end of a line would be a spot of colour without a word
  const colour = make("span", { class: scored ? `s${shade(bits)}` : "" }, word);
  const node = make("span", { class: text.includes("\n") ? "tok newline" : "tok" }, text.slice(0, text.length - word.length), colour);
  if (tokens.length) tokensOf.set(node, tokens);
  return node;
}

/** Numbers of an answer: {tokens, bits, bytes}. */
function countOf(spans) {
  const count = { tokens: 0, bits: 0, bytes: 0 };
  for (const [text, tokens] of spans) {
    const scored = tokens.filter((token) => token.p !== null);
    if (!scored.length) continue;
    count.tokens += scored.length;
    count.bits += scored.reduce((sum, token) => sum + bitsOf(token.p), 0);
    count.bytes += encoder.encode(text).length;
  }
  return count;
}

function showLegend() {
  const ends = ["0", ...LIMITS.map((limit) => number(limit, 1))];
  ends[ends.length - 1] += "+";
  $("legend").replaceChildren(make("span", {}, t("legend_low")),
    make("span", { class: "scale" }, ...ends.map((end, i) => make("i", { class: `s${i}`, title: t("legend_step",
      { bits: end, p: percent(2 ** -(i ? LIMITS[i - 1] : 0)) }) }, end))),
    make("span", {}, t("legend_high")));
}

/* the card */

let current = null; // the token that the card shows

const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";

/** A token's text with its spaces made visible, but paler than the characters. */
function named(text) {
  const node = make("code", { dir: "auto" });
  for (const part of visible(text).split(/([␣↵⇥∅]+)/)) {
    node.append(/^[␣↵⇥∅]/.test(part) ? make("span", { class: "gap" }, part) : part);
  }
  return node;
}

function rowOf(text, p, kind) {
  const bar = make("span");
  bar.style.width = `${Math.max(0, Math.min(100, 100 * p))}%`;
  return make("div", { class: `row ${kind}` }, kind === "others" ? make("code", {}, text) : named(text),
    make("div", { class: "track" }, bar), make("span", { class: "share" }, percent(p)));
}

function cardOf(token) {
  if (token.p === null) return [make("div", { class: "head" }, named(token.text)), make("p", {}, t("card_first"))];
  const p = Math.exp(token.p), rank = token.top.findIndex(([text]) => text === token.text);
  const listed = rank < 0 ? [...token.top, [token.text, token.p]] : token.top;
  const others = 1 - listed.reduce((sum, [, logprob]) => sum + Math.exp(logprob), 0);
  return [
    make("div", { class: "head" }, named(token.text), make("b", {}, percent(p))),
    make("p", {}, t("card_bits", { bits: number(bitsOf(token.p), 2) }),
      token.top.length > 1 ? ` · ${rank < 0 ? t("card_below", { n: token.top.length }) : t("card_rank", { rank: rank + 1 })}` : ""),
    ...listed.map(([text, logprob]) => rowOf(text, Math.exp(logprob), text === token.text ? "chosen" : "")),
    listed.length > 1 && others > 0.00001 ? rowOf(t("card_others"), others, "others") : null,
  ].filter(Boolean);
}

function showCard(node) {
  current?.classList.remove("at");
  current = node;
  node.classList.add("at");
  const tokens = tokensOf.get(node);
  $("card").replaceChildren(...(tokens.length > 1 ? [make("p", {}, t("card_several", { n: tokens.length }))] : []),
    ...tokens.slice(0, 4).flatMap(cardOf), make("p", {}, t("card_raw")));
  node.setAttribute("aria-describedby", "card");
  placeCard();
}

/** Puts the card below its token, or above it; a token that was scrolled away has none. */
function placeCard() {
  if (!current) return;
  const card = $("card"), box = [...current.getClientRects()].at(-1), frame = $("view").getBoundingClientRect();
  if (!box || box.bottom < Math.max(0, frame.top) || box.top > Math.min(window.innerHeight, frame.bottom)) {
    hideCard();
    return;
  }
  card.hidden = false;
  const below = box.bottom + 8 + card.offsetHeight < window.innerHeight;
  card.style.left = `${Math.min(Math.max(8, box.left - 16), document.documentElement.clientWidth - card.offsetWidth - 8)}px`;
  card.style.top = `${Math.max(8, below ? box.bottom + 8 : box.top - card.offsetHeight - 8)}px`;
}

function hideCard() {
  if (!current) return;
  current.classList.remove("at");
  current.removeAttribute("aria-describedby");
  current = null;
  $("card").hidden = true;
}

/** Mouse, touch, and keyboard: the text takes the focus as a whole, the arrow keys go from token to token. */
function followTokens(view) {
  const tokenAt = (event) => {
    const node = event.target.closest?.(".tok");
    return node && tokensOf.has(node) ? node : null;
  };
  view.addEventListener("pointerover", (event) => (tokenAt(event) ? showCard(tokenAt(event)) : hideCard()));
  view.addEventListener("pointerleave", hideCard);
  view.addEventListener("click", (event) => { if (tokenAt(event)) showCard(tokenAt(event)); });
  document.addEventListener("scroll", placeCard, true);
  document.addEventListener("pointerdown", (event) => { if (!tokenAt(event)) hideCard(); });
  view.addEventListener("focusout", hideCard);
  view.addEventListener("keydown", (event) => {
    const text = event.target.closest?.(".text");
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!text || event.target !== text || !step || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    const nodes = [...text.querySelectorAll(".tok")].filter((node) => tokensOf.has(node));
    if (!nodes.length) return;
    event.preventDefault();
    const at = nodes.indexOf(current);
    const node = nodes[at < 0 ? (step > 0 ? 0 : nodes.length - 1) : Math.min(nodes.length - 1, Math.max(0, at + step))];
    node.scrollIntoView({ block: "nearest" });
    showCard(node);
    const [token] = tokensOf.get(node);
    speech.say(token.p === null ? token.text : t("card_spoken", { token: token.text, p: percent(Math.exp(token.p)),
      bits: number(bitsOf(token.p), 1) }));
  });
}
