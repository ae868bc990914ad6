/* The panel of parameters: a row per parameter, made from the server's own table. Only what was changed is sent, and to
   a model that has learnt to answer, what `foundry chat` begins with. */

/** What the API takes besides the sampling parameters, in the form of their table. */
const REQUEST = [
  { name: "max_tokens", kind: "integer", default: DATA.limits.default_tokens, low: 1, high: DATA.limits.max_new_tokens, usual: [1, 512] },
  { name: "stop", kind: "lines", default: [] },
  { name: "seed", kind: "integer", default: null, low: 0, high: Number.MAX_SAFE_INTEGER },
  { name: "n", kind: "integer", default: 1, low: 1, high: DATA.limits.max_n, usual: [1, Math.min(8, DATA.limits.max_n)] },
  { name: "best_of", kind: "integer", default: null, low: 1, high: DATA.limits.max_n, only: "completion" },
  { name: "stop_token_ids", kind: "ids", default: [] },
  { name: "past_context", kind: "choice", default: "stop", choices: ["stop", "slide"] },
  { name: "response_format", kind: "schema", default: null },
].map((entry) => ({ ...entry, text: DATA.words[`parameter_${entry.name}`].en, chinese: DATA.words[`parameter_${entry.name}`].zh }));

const GROUPS = [
  ["", ["temperature", "top_p", "max_tokens", "stop", "seed", "n"]],
  ["group_truncation", ["top_k", "min_p", "typical_p", "top_n_sigma"]],
  ["group_dynamic", ["dynatemp_range", "dynatemp_exponent", "top_p_decay", "top_p_min", "top_p_reset_ids"]],
  ["group_penalties", ["repetition_penalty", "presence_penalty", "frequency_penalty"]],
  ["group_tokens", ["min_tokens", "stop_token_ids", "logit_bias", "bad_words"]],
  ["group_answers", ["best_of", "past_context", "response_format"]],
];

/** Whether the page talks to a model that has learnt to answer. */
const chatting = () => state.mode === "chat" && Boolean(model()?.chat_trained);

/** The value of a parameter that nobody changed. */
const beginOf = (entry) => (chatting() ? DATA.answering[entry.name] : undefined) ?? entry.default;

const parameters = {
  table: new Map([...DATA.parameters, ...REQUEST].map((entry) => [entry.name, entry])),
  texts: {}, // name → what was typed, if it is not the default

  load() {
    try { this.texts = JSON.parse(kept.get(lasting, "parameters") || "{}"); } catch { this.texts = {}; }
    for (const name of Object.keys(this.texts)) if (!this.table.has(name)) delete this.texts[name];
  },

  /** The fields of a request. Throws a WrongValue for a text that is no value of its parameter. */
  fields(mode) {
    const fields = chatting() ? { ...DATA.answering } : {};
    for (const [name, text] of Object.entries(this.texts)) {
      const entry = this.table.get(name);
      if (entry.only && entry.only !== mode) continue;
      fields[name] = valueOf(entry, text);
    }
    return fields;
  },

  set(name, text) {
    const entry = this.table.get(name);
    if (text === "" || text === textOf(entry, beginOf(entry))) delete this.texts[name];
    else this.texts[name] = text;
    kept.set(lasting, "parameters", JSON.stringify(this.texts));
    this.mark();
  },

  /** Shows which rows are changed. */
  mark() {
    for (const row of document.querySelectorAll(".parameter")) {
      row.classList.toggle("changed", row.dataset.name in this.texts);
    }
    const n = Object.keys(this.texts).length;
    $("changed-count").textContent = n ? t("changed", { n }) : t("unchanged");
    $("reset-all").hidden = !n;
  },

  /** Marks a row as wrong and says why; null: none is wrong. */
  wrong(name, why) {
    for (const row of document.querySelectorAll(".parameter.wrong")) {
      row.classList.remove("wrong");
      row.querySelector(".why").textContent = "";
      row.querySelector("[id]").removeAttribute("aria-invalid");
    }
    const row = name && document.querySelector(`.parameter[data-name="${CSS.escape(name)}"]`);
    if (!row) return;
    row.classList.add("wrong");
    row.querySelector(".why").textContent = why;
    const input = row.querySelector("[id]");
    input.setAttribute("aria-invalid", "true");
    const group = row.closest("details");
    if (group) group.open = true;
    showTab("parameters");
    row.scrollIntoView({ block: "nearest" });
  },

  render() {
    const open = new Set([...document.querySelectorAll("#parameters details[open]")].map((node) => node.dataset.group));
    const listed = new Set(GROUPS.flatMap(([, names]) => names));
    const more = [...this.table.keys()].filter((name) => !listed.has(name));
    const groups = more.length ? [...GROUPS, ["group_more", more]] : GROUPS;
    const reset = make("button", { type: "button", class: "quiet", id: "reset-all", on: { click: () => this.resetAll() } }, t("reset_all"));
    const nodes = [make("div", { class: "head" }, make("span", { id: "changed-count", role: "status" }), reset)];
    for (const [group, names] of groups) {
      const rows = names.filter((name) => this.table.has(name)).map((name) => this.row(this.table.get(name)));
      if (!group) nodes.push(...rows);
      else {
        if (group === "group_tokens") rows.unshift(finderNode());
        const changed = names.some((name) => name in this.texts);
        nodes.push(make("details", { "data-group": group, open: open.has(group) || changed },
          make("summary", {}, t(group)), ...rows));
      }
    }
    $("parameters").replaceChildren(...nodes);
    this.mark();
  },

  resetAll() {
    this.texts = {};
    kept.set(lasting, "parameters", null);
    this.render();
    $("parameters").querySelector("input").focus();
  },

  row(entry) {
    const id = `p-${entry.name}`, text = this.texts[entry.name] ?? textOf(entry, beginOf(entry));
    const about = { id, "aria-describedby": `${id}-text`, spellcheck: "false", autocomplete: "off" };
    let controls;
    if (entry.kind === "choice") {
      controls = [make("select", about, ...entry.choices.map((choice) => make("option", { selected: choice === text }, choice)))];
    } else if (entry.kind === "number" || entry.kind === "integer") {
      const step = entry.kind === "integer" ? 1 : entry.usual && entry.usual[1] <= 1 ? 0.01 : 0.05;
      const input = make("input", { ...about, type: "number", step: entry.kind === "integer" ? 1 : "any", min: entry.low,
        max: entry.high, value: text, placeholder: entry.default === null ? t(`default_${entry.name}`) : null });
      controls = [input];
      if (entry.usual) {
        const slider = make("input", { type: "range", tabindex: -1, "aria-hidden": "true", min: entry.usual[0],
          max: entry.usual[1], step, value: text });
        slider.addEventListener("input", () => { input.value = slider.value; this.set(entry.name, slider.value); });
        input.addEventListener("input", () => { slider.value = input.value; });
        controls.unshift(slider);
      }
    } else {
      controls = [make("textarea", { ...about, rows: entry.kind === "schema" ? 3 : 1,
        placeholder: t(`form_${entry.kind}`) }, text)];
      controls[0].value = text;
    }
    for (const control of controls) control.addEventListener("input", () => { this.wrong(null); this.set(entry.name, $(id).value); });
    const reset = make("button", { type: "button", class: "quiet reset", on: { click: () => {
      this.set(entry.name, "");
      row.replaceWith(this.row(entry));
      $(id).focus();
    } } }, t("reset"));
    const row = make("div", { class: `parameter${entry.name in this.texts ? " changed" : ""}${entry.only ? ` only-${entry.only}` : ""}`,
      "data-name": entry.name },
    make("div", { class: "line" }, make("label", { for: id }, entry.name), reset),
    make("div", { class: "control" }, ...controls), make("p", { class: "why", role: "alert" }),
    make("p", { id: `${id}-text` }, language === "zh" ? entry.chinese : entry.text, " ", make("span", { class: "range" }, rangeOf(entry))));
    return row;
  },
};

/** Which ids a text has: what the parameters of this group are about. */
function finderNode() {
  const found = make("p", { class: "found", role: "status" });
  const find = async (event) => {
    const text = event.target.value;
    let pieces = [];
    try { pieces = text ? tokenPieces(await (await call("tokenize", { prompt: text, add_special_tokens: false })).json()) : []; } catch (error) {
      pieces = [error.message];
    }
    if (event.target.value === text) found.replaceChildren(...pieces);
  };
  return make("div", { class: "parameter" }, make("label", { for: "finder", class: "plain" }, t("finder")),
    make("div", { class: "control" }, make("input", { type: "text", id: "finder", spellcheck: "false", autocomplete: "off", on: { input: find } })), found);
}

const tokenPieces = ({ tokens, token_strs: texts }) => tokens.flatMap((id, i) => [
  make("span", { class: "piece" }, named(texts[i]), ` ${id}`), " "]);

class WrongValue extends Error {
  constructor(name, why) { super(why); this.param = name; }
}

function textOf(entry, value) {
  if (value === null || value === undefined) return "";
  return Array.isArray(value) ? "" : String(value);
}

function rangeOf(entry) {
  if (entry.kind !== "number" && entry.kind !== "integer") return "";
  const low = entry.low ?? "−∞";
  const range = entry.high === null || entry.high === undefined || entry.high >= Number.MAX_SAFE_INTEGER
    ? t("at_least", { low }) : `${entry.low_open ? "(" : "["}${low}, ${entry.high}]`;
  return entry.default === null ? t("range_only", { range }) : t("range", { range, value: beginOf(entry) });
}

/** The value that a text means. What the server would refuse anyway is left to the server, whose reason is shown. */
function valueOf(entry, text) {
  const wrong = () => new WrongValue(entry.name, t(`wrong_${entry.kind}`));
  const numbers = (part) => part.split(/[,，\s]+/).filter(Boolean).map((word) => {
    if (!/^\d+$/.test(word)) throw wrong();
    return Number(word);
  });
  switch (entry.kind) {
    case "number":
    case "integer":
      if (text.trim() === "" || !Number.isFinite(Number(text))) throw wrong();
      return Number(text);
    case "choice":
      return text;
    case "words":
    case "lines":
      return text.split("\n").filter(Boolean).map((line) => line.replaceAll("\\n", "\n").replaceAll("\\t", "\t"));
    case "ids":
      return numbers(text);
    case "bias": {
      const pairs = text.split(/[,，\n]+/).filter((part) => part.trim()).map((part) => part.split(/[=:]/).map((word) => word.trim()));
      if (pairs.some(([id, bias, more]) => !/^\d+$/.test(id) || !bias || !Number.isFinite(Number(bias)) || more !== undefined)) throw wrong();
      return Object.fromEntries(pairs.map(([id, bias]) => [id, Number(bias)]));
    }
    default: { // schema
      if (text.trim() === "json_object") return { type: "json_object" };
      try { return { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(text), strict: true } }; } catch { throw wrong(); }
    }
  }
}
