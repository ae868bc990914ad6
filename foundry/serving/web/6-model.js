/* The model that answers: its lineage and numbers, and notice of its replacement. */

let models = []; // as /v1/models lists them; the one that answers new requests is the first
let answering = null; // weights hash of the model that answered last

const model = () => models[0] || null;

/** Reads /v1/models; while the server loads its model, again every second. */
async function loadModels() {
  const before = JSON.stringify(models);
  try {
    models = (await (await call("v1/models")).json()).data || [];
    $("key-form").hidden = true;
    notify("models", null);
  } catch (error) {
    if (error.kind === "error_401") return askForKey();
    notify("models", t(error.kind === "error_503" ? "loading" : error.kind, {}), error.kind === "error_503" ? "" : error.message, error.kind !== "error_503");
    setTimeout(loadModels, error.wait ? 1000 * error.wait : error.kind === "error_503" ? 1000 : 5000);
    return;
  }
  if (!models.length) {
    notify("models", t("loading"));
    setTimeout(loadModels, 1000);
    return;
  }
  noticeModel(model().weights_sha256);
  chooseMode();
  if (JSON.stringify(models) !== before) {
    parameters.render();
    showAll();
  }
}

/** Called with the weights that an answer or the list names: says so if they are others than before. */
function noticeModel(weights) {
  if (!weights || weights === answering) return;
  const before = answering;
  answering = weights;
  if (before === null) return;
  notify("swap", t("swapped", { before: before.slice(0, 12), now: weights.slice(0, 12) }));
  speech.say(t("swapped_short"));
  if (!model() || model().weights_sha256 !== weights) loadModels();
}

function askForKey() {
  const wrong = Boolean(key);
  key = "";
  kept.set(forThisTab, "key", null);
  $("key-form").hidden = false;
  notify("models", wrong ? t("key_wrong") : null, "", true);
  $("key").value = "";
  $("key").focus();
}

function useKey(event) {
  event.preventDefault();
  key = $("key").value.trim();
  kept.set(forThisTab, "key", key || null);
  $("key").value = "";
  loadModels();
}

/** A message above the conversation; one per name, and null takes it away. */
function notify(name, text, detail = "", bad = false) {
  document.querySelector(`#notices [data-name="${name}"]`)?.remove();
  if (text === null) return;
  $("notices").append(make("div", { class: `notice${bad ? " bad" : ""}`, "data-name": name }, text,
    detail ? make("p", { class: "detail" }, detail) : null, iconButton("close", "close", () => notify(name, null))));
}

/** The panel with what is known about the model. */
function renderFacts() {
  const entry = model();
  if (!entry) return $("facts").replaceChildren(make("p", { class: "soft" }, t("loading")));
  const list = make("dl");
  const add = (key, value, kind = "") => {
    if (value === null || value === undefined || value === "") return;
    list.append(make("dt", DATA.words[`${key}_long`] ? { title: t(`${key}_long`) } : {}, t(key)), make("dd", { class: kind }, value));
  };
  const bits = entry.bits_per_byte;
  add("fact_bits", bits && number(bits.value, 3, { minimumFractionDigits: 3 }), "big");
  if (bits) list.lastChild.append(make("div", { class: "soft interval" }, t("fact_interval", { low: number(bits.low, 3), high: number(bits.high, 3), level: number(100 * (bits.confidence ?? 0.95), 1) })));
  add("fact_name", entry.id);
  add("fact_source", entry.source);
  add("fact_version", entry.version);
  add("fact_size", t("n_weights", { n: number(entry.parameters) }));
  add("fact_context", t("n_tokens", { n: number(entry.context_length) }));
  add("fact_vocabulary", t("n_tokens", { n: number(entry.vocabulary) }));
  add("fact_license", entry.license ?? t("fact_unknown"));
  add("fact_weights", entry.weights_sha256, "hash");
  add("fact_tokenizer", entry.tokenizer_sha256, "hash");
  add("fact_fingerprint", entry.fingerprint, "hash");
  add("fact_format", `${entry.weights} · ${entry.backend}`);
  add("fact_since", entry.created && new Date(1000 * entry.created).toLocaleString(language === "zh" ? "zh-CN" : "en"));
  const others = models.slice(1).map((other) => make("dd", {}, other.id));
  if (others.length) list.append(make("dt", {}, t("fact_others")), ...others);
  $("facts").replaceChildren(...[entry.chat_trained ? null : make("div", { class: "notice" }, t("base_model")), list].filter(Boolean));
}
