/* An answer: asking for it, its text while it streams, and what can be done with it. */

/** One answer of the model; `spans` has its text with the tokens. */
function newAnswer() {
  return { text: "", spans: [], finish: null, seed: null, id: null, index: 0, model: null, weights: null, usage: null, dropped: 0,
    seconds: 0, first: null, error: null, rating: 0, edited: false, path: null, request: null };
}

let running = null; // {controller, answers} while answers stream
const views = new WeakMap(); // answer → the nodes that show it

/** The length of an answer unless the user sets one: what fits the context together with the prompt. */
async function roomFor(prompt, signal) {
  const { count, max_model_len: context } = await (await call("tokenize", prompt, signal)).json();
  return Math.max(1, Math.min(DATA.limits.default_tokens, context - count));
}

/** Asks for answers and streams them into `slot.versions`. Never throws: an error is a part of the answer.
    `prompt` is what /tokenize counts if the request does not say how long a continuation may be. An answer in a
    conversation ends by itself, or with the context. */
async function ask(slot, path, request, prompt) {
  const count = request.n || 1, first = slot.versions.length;
  const answers = Array.from({ length: count }, newAnswer);
  slot.versions.push(...answers);
  slot.at = first;
  const controller = new AbortController(), started = performance.now();
  const aligners = answers.map(() => new Aligner());
  answers.forEach((answer, index) => Object.assign(answer, { path, request, index }));
  running = { controller, answers };
  parameters.wrong(null);
  showAll();
  toEnd();
  try {
    if (prompt) request.max_tokens ??= request.past_context === "slide" ? DATA.limits.default_tokens : await roomFor(prompt, controller.signal);
    const response = await call(path, request, controller.signal);
    noticeModel(response.headers.get("X-Foundry-Model"));
    const objects = request.stream ? events(response) : [await response.json()];
    for await (const object of objects) {
      for (const answer of answers) {
        answer.id = object.id ?? answer.id;
        answer.model = object.model ?? answer.model;
        answer.weights = response.headers.get("X-Foundry-Model");
        answer.usage = object.usage ?? answer.usage;
        answer.dropped = object.dropped_messages ?? answer.dropped;
      }
      for (const choice of object.choices || []) {
        const answer = answers[choice.index], seconds = (performance.now() - started) / 1000;
        const text = choice.text ?? choice.message?.content ?? choice.delta?.content ?? "";
        const listed = choice.logprobs?.content ? choice.logprobs.content.map(fromChat)
          : choice.logprobs?.tokens ? fromCompletion(choice.logprobs) : [];
        if (text || listed.length) {
          answer.first ??= seconds;
          answer.seconds = seconds;
        }
        answer.seed = choice.seed ?? object.seed ?? answer.seed;
        answer.finish = choice.stop_reason === "timeout" ? "timeout" : choice.finish_reason ?? answer.finish;
        extend(answer, text, aligners[choice.index].add(text, listed));
      }
    }
    for (const answer of answers) answer.finish ??= "stop";
  } catch (error) {
    const stopped = error.name === "AbortError";
    for (const answer of answers) {
      if (answer.finish) continue;
      answer.finish = stopped ? "stopped" : "error";
      if (!stopped) answer.error = { kind: error.kind || "error_page", message: error.message, wait: error.wait ?? null, param: error.param ?? null };
    }
    if (!stopped && error.kind === undefined) console.error(error);
    if (error.param) parameters.wrong(error.param.split(/[.[]/)[0], error.message);
    if (error.kind === "error_401") askForKey();
  }
  answers.forEach((answer, i) => {
    const span = aligners[i].flush();
    if (span[0]) extend(answer, "", [span]);
  });
  const follow = atEnd();
  running = null;
  speech.end(t(`said_${answers[0].finish}`, {}));
  showAll();
  if (follow) toEnd();
  save();
}

/** Appends to an answer, on the page too if it is the one that is shown. */
function extend(answer, text, spans) {
  const view = views.get(answer);
  const follow = atEnd();
  answer.text += text;
  answer.spans.push(...spans);
  if (!view?.isConnected) return;
  view.append(...spans.map(spanOf));
  if (follow) toEnd();
  speech.add(text);
}

function stopAsking() {
  running?.controller.abort();
}

/** The nodes of an answer with its actions. `acts` has what depends on the mode: {again, edit, on}. */
function answerNode(slot, lead, acts) {
  const answer = slot.versions[slot.at];
  const busy = running?.answers.includes(answer);
  const text = make("div", { class: "text", tabindex: 0, dir: "auto", role: "group", "aria-label": t("answer_label"), "aria-busy": busy ? "true" : null },
    lead ? make("span", { class: "lead" }, lead) : null, ...answer.spans.map(spanOf));
  views.set(answer, text);
  const node = make("div", { class: busy ? "busy" : "" }, text);
  if (answer.error) node.append(errorNode(answer.error));
  if (!busy) node.append(footNode(slot, answer, acts));
  return node;
}

function errorNode(error) {
  const words = error.kind === "error_429" && error.wait ? t("error_429_wait", { n: error.wait }) : t(error.kind, {});
  return make("div", { class: "notice bad", role: "alert" }, words,
    error.message ? make("p", { class: "detail" }, error.message) : null);
}

function footNode(slot, answer, acts) {
  const foot = make("div", { class: "foot" });
  if (slot.versions.length > 1) {
    const turn = (by) => () => { slot.at += by; showAll(by < 0 ? "previous" : "next"); save(); };
    foot.append(iconButton("left", "previous", turn(-1), { disabled: slot.at === 0 }),
      make("span", { class: "at" }, `${slot.at + 1} / ${slot.versions.length}`),
      iconButton("right", "next", turn(1), { disabled: slot.at === slot.versions.length - 1 }));
  }
  if (acts.again) foot.append(iconButton("again", "again", acts.again, { disabled: Boolean(running) }));
  if (answer.text) {
    foot.append(copyButton("copy", "copy", () => answer.text));
    if (acts.edit) foot.append(iconButton("edit", "edit", acts.edit, { disabled: Boolean(running) }));
    if (acts.on) foot.append(iconButton("on", "go_on", acts.on, { disabled: Boolean(running) }));
  }
  if (answer.request && !slot.measured) foot.append(copyButton("code", "curl", () => asCurl(answer.path, repeatable(answer))));
  if (DATA.recording && answer.id && answer.text && !slot.measured) {
    for (const [name, rating] of [["up", 1], ["down", -1]]) {
      foot.append(iconButton(name, `rate_${name}`, () => rate(answer, answer.rating === rating ? 0 : rating), { "aria-pressed": String(answer.rating === rating) }));
    }
  }
  foot.append(numbersNode(answer, slot.measured));
  return foot;
}

/** The request with the seed that gave this answer. */
function repeatable(answer) {
  const { stream, stream_options, n, best_of, ...rest } = answer.request;
  return answer.seed === null ? rest : { ...rest, seed: answer.seed };
}

function numbersNode(answer, measured) {
  const count = countOf(answer.spans), parts = [];
  const say = (key, values, why) => parts.push(make("span", why ? { title: t(why) } : {}, t(key, values)));
  if (count.tokens) {
    say("n_tokens", { n: number(count.tokens) });
    if (answer.seconds > answer.first && count.tokens > 1) {
      say("n_speed", { n: number((count.tokens - 1) / (answer.seconds - answer.first), 0) }, "n_speed_long");
    }
    say("n_bits", { n: number(count.bits / count.tokens, 2, { minimumFractionDigits: 2 }) }, "n_bits_long");
    say("n_bytes", { n: number(count.bits / count.bytes, 2, { minimumFractionDigits: 2 }) }, "n_bytes_long");
  }
  if (answer.seed !== null && !measured) say("n_seed", { n: String(answer.seed) }, "n_seed_long");
  if (answer.weights && answer.weights !== answering) say("n_former", { n: answer.weights.slice(0, 12) }, "n_former_long");
  if (answer.edited) say("edited", {});
  else if (answer.finish !== "error" && !measured) say(`finish_${answer.finish}`, {}, answer.finish === "length" ? "finish_length_long" : null);
  return make("span", { class: "numbers" }, ...parts);
}

async function rate(answer, rating) {
  try {
    await call("v1/feedback", { id: answer.id, index: answer.index, rating });
    answer.rating = rating;
    save();
  } catch (error) {
    notify("feedback", t("feedback_failed"), error.message, true);
  }
  showAll(rating < 0 ? "rate_down" : "rate_up");
}
