/* The two modes, and what the controls of the page do. */

/** What the page is about. A slot is {versions: [answer, …], at}; a turn of the chat has a slot or the user's text. */
const state = { mode: null, colours: true, system: "", chat: [], prompts: { chat: "", completion: "" }, result: null };
const turns = { user: (text) => ({ role: "user", text }), assistant: () => ({ role: "assistant", versions: [], at: 0 }) };

const inChat = () => state.mode === "chat";
const said = (turn) => (turn.role === "user" ? turn.text : turn.versions[turn.at].text);

/** The mode in which the page begins: what this tab had, or what suits the model. */
function chooseMode() {
  if (state.mode === null) setMode(model()?.chat_trained ? "chat" : "completion");
}

function setMode(mode) {
  state.prompts[state.mode ?? mode] = $("prompt").value;
  state.mode = mode;
  $("prompt").value = state.prompts[mode];
  parameters.render();
  showAll();
  save();
}

/* requests */

function settings() {
  try { return parameters.fields(state.mode); } catch (error) {
    if (!(error instanceof WrongValue)) throw error;
    parameters.wrong(error.param, error.message);
    openPanel(true);
    $(`p-${error.param}`).focus();
    return null;
  }
}

/** With a fixed seed, further answers of a slot get the seeds after it: the same one would give the same text. */
function seeded(fields, slot) {
  return fields.seed === undefined ? fields : { ...fields, seed: fields.seed + slot.versions.length };
}

async function askChat(turn) {
  const fields = settings();
  if (!fields || !model()) return;
  const before = state.chat.slice(0, state.chat.indexOf(turn));
  const messages = before.map((one) => ({ role: one.role, content: said(one) }));
  if (state.system.trim()) messages.unshift({ role: "system", content: state.system });
  await ask(turn, "v1/chat/completions", { messages, truncation: "auto", ...seeded(fields, turn), logprobs: true,
    top_logprobs: DATA.limits.alternatives, stream: true, stream_options: { include_usage: true } }, null);
}

async function askCompletion(slot) {
  const fields = settings();
  if (!fields || !model()) return;
  const stream = !(fields.best_of > 1); // the best of several is known only when all are complete
  const prompt = slot.prompt;
  await ask(slot, "v1/completions", { prompt, ...seeded(fields, slot),
    logprobs: DATA.limits.alternatives, stream, ...(stream && { stream_options: { include_usage: true } }) }, { prompt });
}

/** How well the model predicts the text that is there: nothing is generated. */
async function measure() {
  const prompt = $("prompt").value;
  if (running || !prompt || !model()) return;
  state.result = { prompt: "", measured: true, versions: [], at: 0 };
  await ask(state.result, "v1/completions", { prompt, max_tokens: 0, echo: true, logprobs: DATA.limits.alternatives });
}

function send(event) {
  event?.preventDefault();
  const text = $("prompt").value;
  if (running || !model() || (inChat() && !text.trim()) || !settings()) return;
  if (inChat()) {
    const turn = turns.assistant();
    state.chat.push(turns.user(text), turn);
    $("prompt").value = "";
    fitPrompt();
    askChat(turn);
  } else {
    if (state.result?.prompt !== text || state.result.measured) state.result = { prompt: text, versions: [], at: 0 };
    askCompletion(state.result);
  }
}

/* what is shown */

/** Draws everything again; the focus stays on the control with the same meaning. */
function showAll(focus) {
  document.body.classList.toggle("in-chat", inChat());
  document.body.classList.toggle("colours", state.colours);
  const composer = $("composer"), place = inChat() ? null : $("main").firstElementChild; // below a chat, above a continuation
  if (inChat() ? $("main").lastElementChild !== composer : place !== composer) $("main").insertBefore(composer, place);
  hideCard();
  translatePage();
  showTheme();
  showLegend();
  const first = model();
  $("model-name").textContent = first ? [first.id, first.version && `v${first.version}`].filter(Boolean).join(" · ") : "";
  document.title = first ? `${first.id} · Foundry` : "Foundry";
  $("model-kind").hidden = !first || first.chat_trained;
  $("colours").checked = state.colours;
  for (const input of document.querySelectorAll("[name=mode]")) input.checked = input.value === state.mode;
  $("system").value = state.system;
  $("prompt").rows = inChat() ? 2 : 4;
  $("prompt").placeholder = t(inChat() ? "chat_hint" : "completion_hint");
  $("prompt-label").textContent = t(inChat() ? "chat_label" : "completion_label");
  $("send").textContent = t(inChat() ? "send" : "continue");
  $("send").hidden = $("measure").hidden = Boolean(running);
  $("stop").hidden = !running;
  $("hint").replaceChildren(make("kbd", {}, running ? "Esc" : "Ctrl"), ...(running ? [] : [make("span", { class: "keys" }, " + "), make("kbd", {}, "Enter")]),
    make("span", { class: "keys" }, ` ${t(running ? "hint_stop" : inChat() ? "hint_send" : "hint_continue")}`));
  renderFacts();
  const view = $("view"), top = scroller().scrollTop, act = focus || document.activeElement?.dataset?.act;
  const at = act && [...view.querySelectorAll(".turn")].indexOf(document.activeElement?.closest(".turn"));
  view.replaceChildren(...(state.mode === null ? [] : inChat() ? chatNodes() : completionNodes()));
  scroller().scrollTop = top;
  if (act) [...view.querySelectorAll(".turn")][at]?.querySelector(`[data-act="${act}"]`)?.focus();
  for (const id of ["new", "save-text", "save-json"]) $(id).disabled = Boolean(running) || !(inChat() ? state.chat.length : state.result);
  fitPrompt();
}

function introNodes() {
  const base = model() && !model().chat_trained;
  const examples = ["example_1", "example_2", "example_3"].map((key) => make("button", { type: "button", class: "second", on: { click: () => {
    $("prompt").value = t(`${key}_${state.mode}`);
    fitPrompt();
    $("prompt").focus();
  } } }, t(`${key}_${state.mode}`)));
  return [make("div", { class: "intro" }, make("h1", {}, t(inChat() ? "intro_chat" : "intro_completion")), make("p", {}, t("intro_hover")),
    base && inChat() ? make("div", { class: "notice" }, t("base_model_chat"), make("div", { class: "line" },
      make("button", { type: "button", class: "second", on: { click: () => setMode("completion") } }, t("to_completion")))) : null,
    make("div", { class: "examples" }, ...examples))];
}

/** How many of the oldest messages the model did not read for its newest answer: the context had no room for them. */
function unread() {
  const last = state.chat.at(-1);
  return last?.role === "assistant" ? last.versions[last.at]?.dropped ?? 0 : 0;
}

function chatNodes() {
  if (!state.chat.length) return introNodes();
  const out = unread();
  const nodes = state.chat.map((turn, i) => {
    const node = make("article", { class: `turn ${turn.role}` }, make("div", { class: "who" }, t(turn.role)));
    if (turn.editing) node.append(editorNode(turn, i));
    else if (turn.role === "user") {
      node.append(make("div", { class: "text", dir: "auto" }, turn.text), make("div", { class: "foot" },
        iconButton("edit", "edit", () => editTurn(turn), { disabled: Boolean(running) }), copyButton("copy", "copy", () => turn.text)));
    } else {
      node.append(answerNode(turn, null, { edit: () => editTurn(turn), again: () => {
        if (!settings()) return;
        state.chat.length = i + 1;
        askChat(turn);
      } }));
    }
    return node;
  });
  if (out) nodes.splice(out, 0, make("div", { class: "notice forgotten" }, t("forgotten", { n: number(out), context: number(model()?.context_length) })));
  return nodes;
}

function completionNodes() {
  const slot = state.result;
  if (!slot) return introNodes();
  const answer = slot.versions[slot.at];
  const acts = slot.measured ? {} : {
    again: () => askCompletion(slot),
    on: () => {
      $("prompt").value = slot.prompt + answer.text;
      fitPrompt();
      $("prompt").focus();
    },
    edit: null,
  };
  return [make("article", { class: "turn assistant" }, make("div", { class: "who" }, t(slot.measured ? "measured" : "continuation")), answerNode(slot, slot.prompt, acts))];
}

function editTurn(turn) {
  for (const other of state.chat) { delete other.editing; delete other.draft; }
  turn.editing = true;
  showAll();
  const box = $("view").querySelector(".editor textarea");
  box.focus();
  box.setSelectionRange(box.value.length, box.value.length);
}

/** A user's message that is changed is asked again, and what came after it goes; an answer that is changed only stays so. */
function editorNode(turn, i) {
  const box = make("textarea", { rows: Math.min(12, 2 + said(turn).split("\n").length), "aria-label": t("edit"), dir: "auto" });
  box.value = turn.draft ?? said(turn); // the page may be drawn again meanwhile
  box.addEventListener("input", () => { turn.draft = box.value; });
  const close = () => { delete turn.editing; delete turn.draft; showAll(); $("view").querySelectorAll(".turn")[i]?.querySelector('[data-act="edit"]')?.focus(); };
  const done = () => {
    delete turn.editing;
    delete turn.draft;
    if (turn.role === "user") {
      const answer = turns.assistant();
      turn.text = box.value;
      state.chat.splice(i + 1, Infinity, answer);
      askChat(answer);
    } else {
      const old = turn.versions[turn.at];
      turn.versions.push({ ...newAnswer(), text: box.value, spans: [[box.value, []]], model: old.model, weights: old.weights, edited: true });
      turn.at = turn.versions.length - 1;
      save();
      close();
    }
  };
  const editor = make("div", { class: "editor" }, box, make("div", { class: "line" },
    make("button", { type: "button", class: "main", on: { click: done } }, t(turn.role === "user" ? "edit_send" : "edit_keep")),
    make("button", { type: "button", class: "quiet", on: { click: close } }, t("cancel"))));
  editor.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) done();
    else if (event.key === "Escape") close();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  return editor;
}

/** The text box is as high as its text, within the bounds of the style sheet. */
function fitPrompt() {
  const box = $("prompt");
  box.style.height = "auto";
  if (box.scrollHeight > box.clientHeight) box.style.height = `${box.scrollHeight + 2}px`;
}

/* keeping and saving */

/** Where a reload of this tab finds its state; another number for another form of it. */
const STATE = "state-1";

/** If the browser has no room for the tokens, the conversation is not kept. */
function save() {
  if (state.mode) state.prompts[state.mode] = $("prompt").value;
  if (!kept.set(forThisTab, STATE, JSON.stringify(state))) kept.set(forThisTab, STATE, null);
}

function restore() {
  Object.assign(state, JSON.parse(kept.get(forThisTab, STATE) || "{}"));
  for (const turn of state.chat) { delete turn.editing; delete turn.draft; }
  state.colours = kept.get(lasting, "colours") !== "no";
  if (state.mode) $("prompt").value = state.prompts[state.mode];
}

function fresh() {
  if (inChat()) state.chat = [];
  else state.result = null;
  if (!inChat()) $("prompt").value = "";
  showAll();
  save();
  $("prompt").focus();
}

function asText() {
  if (!inChat()) return (state.result.prompt + state.result.versions[state.result.at].text).replace(/\n*$/, "\n");
  const system = state.system.trim() ? [`${t("system")}:\n${state.system}`] : [];
  return `${[...system, ...state.chat.map((turn) => `${t(turn.role)}:\n${said(turn)}`)].join("\n\n")}\n`;
}

function asJson() {
  const answers = (slot) => slot.versions.map((answer, i) => ({ shown: i === slot.at, text: answer.text, finish_reason: answer.finish,
    seed: answer.seed, model: answer.model, weights_sha256: answer.weights, id: answer.id, edited: answer.edited, usage: answer.usage, dropped_messages: answer.dropped,
    request: answer.request, tokens: answer.spans.flatMap(([, tokens]) => tokens.map((token) => ({ token: token.text, bytes: token.bytes, logprob: token.p,
      top_logprobs: token.top.map(([text, logprob]) => ({ token: text, logprob })) }))) }));
  const content = inChat()
    ? { mode: "chat", system: state.system, messages: state.chat.map((turn) => ({ role: turn.role, content: said(turn), ...(turn.versions && { answers: answers(turn) }) })) }
    : { mode: "completion", prompt: state.result.prompt, answers: answers(state.result) };
  return `${JSON.stringify({ ...content, served: model() }, null, 2)}\n`;
}

/* panel */

function showTab(name) {
  for (const one of ["parameters", "facts"]) {
    $(`tab-${one}`).setAttribute("aria-selected", String(one === name));
    $(`tab-${one}`).tabIndex = one === name ? 0 : -1;
    $(one).hidden = one !== name;
  }
}

function openPanel(open) {
  document.body.classList.toggle("panel-open", open);
  $("panel-toggle").setAttribute("aria-expanded", String(open));
}

/* wiring */

function start() {
  restore();
  parameters.load();
  parameters.render();
  showAll();
  $("composer").addEventListener("submit", send);
  $("key-form").addEventListener("submit", useKey);
  $("stop").addEventListener("click", stopAsking);
  $("measure").addEventListener("click", measure);
  $("prompt").addEventListener("input", () => { fitPrompt(); state.prompts[state.mode] = $("prompt").value; });
  $("system").addEventListener("input", () => { state.system = $("system").value; save(); });
  for (const input of document.querySelectorAll("[name=mode]")) input.addEventListener("change", () => setMode(input.value));
  $("colours").addEventListener("change", () => {
    state.colours = $("colours").checked;
    kept.set(lasting, "colours", state.colours ? null : "no");
    showAll();
  });
  $("language").addEventListener("click", () => {
    language = language === "zh" ? "en" : "zh";
    kept.set(lasting, "language", language);
    parameters.render();
    showAll();
  });
  $("theme").addEventListener("click", nextTheme);
  systemIsDark.addEventListener("change", showTheme);
  $("new").addEventListener("click", fresh);
  $("save-text").addEventListener("click", () => saveFile(`foundry-${state.mode}.txt`, "text/plain", asText()));
  $("save-json").addEventListener("click", () => saveFile(`foundry-${state.mode}.json`, "application/json", asJson()));
  $("panel-toggle").addEventListener("click", () => { openPanel(!document.body.classList.contains("panel-open")); $("panel-close").focus(); });
  $("panel-close").addEventListener("click", () => { openPanel(false); $("panel-toggle").focus(); });
  for (const name of ["parameters", "facts"]) {
    $(`tab-${name}`).addEventListener("click", () => showTab(name));
    $(`tab-${name}`).addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      const other = name === "facts" ? "parameters" : "facts";
      showTab(other);
      $(`tab-${other}`).focus();
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.isComposing) return; // the keys belong to an input method
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      send();
    } else if (event.key === "Escape") {
      if (running) stopAsking();
      else if (current) hideCard();
      else if (document.body.classList.contains("panel-open")) { openPanel(false); $("panel-toggle").focus(); }
    }
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden && !running && models.length) loadModels(); });
  window.addEventListener("pagehide", save);
  followTokens($("view"));
  loadModels();
}

start();
