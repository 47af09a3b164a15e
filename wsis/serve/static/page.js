"use strict";
// Every change goes to the server before the next one is made. Names of classes and files are only ever written as text.
import { Picture } from "/static/canvas.js";

const byId = (id) => document.getElementById(id);
const state = {
  classes: [], colours: {}, images: 0, chosen: null, tool: "point", minus: false, corner: null,
  image: null, current: 0, undo: [], past: [], busy: Promise.resolve(), suggests: "", readOnly: false,
};
const pictures = new Map();
const picture = new Picture(byId("picture"), click);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "colour") made.style.background = value;
    else if (value !== null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function say(text, wrong = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("wrong", wrong);
}

async function call(method, path, body) {
  try {
    const sent = body === undefined ? {} : { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const answer = await fetch(path, { method, ...sent });
    return { status: answer.status, data: await answer.json() };
  } catch {
    return { status: 0, data: { error: "the server does not answer; the last click is not saved" } };
  }
}

// Runs one task after another, so that no click overtakes the one before.
function after(task) {
  state.busy = state.busy.then(task).catch((error) => say(`${error}`, true));
  return state.busy;
}

const plain = (label) => ({ ...label, objects: label.objects.map(({ rings, ...thing }) => thing) });

// A task about the image that is shown now; it is left undone if another one has come by its turn.
function here(task) {
  const number = state.image?.number;
  return after(() => (state.image && state.image.number === number ? task() : false));
}

const change = (edit) => here(() => send(edit));

// Sends the label that `edit` makes of the image's label, if any, and returns whether it was taken.
async function send(edit, remember = true) {
  const { number, file, version, label } = state.image;
  const before = plain(label);
  const edited = edit(structuredClone(before));
  if (!edited) return false;
  const { status, data } = await call("PUT", `/api/images/${number}`, { file, version, label: edited });
  say(status === 200 ? "" : data.error, status !== 200);
  if (status === 200 && remember) state.undo.push({ number, label: before });
  if (status === 409) state.undo = state.undo.filter((step) => step.number !== number);
  if (status === 200 || status === 409) show(data);
  else render(); // boxes that were ticked are as they were
  return status === 200;
}

async function load(number) {
  const { status, data } = await call("GET", `/api/images/${number}`);
  if (status !== 200) {
    say(data.error, true);
    return;
  }
  state.current = 0;
  state.corner = null;
  show(data);
}

async function advance() {
  const now = state.image;
  const { status, data } = await call("GET", `/api/next?order=${byId("order").value}${now ? `&after=${now.number}` : ""}`);
  if (status !== 200) return say(data.error, true);
  if (data.number === null) return say("There is no other photo to label.");
  if (now) state.past.push(now.number);
  say("");
  return load(data.number);
}

// Where nothing is labelled, all photos come by name, round and round.
const step = (by) => after(() => load(((state.image?.number ?? -by) + by + state.images) % state.images));

function next() {
  if (state.readOnly) return step(1);
  return state.image ? here(advance) : after(advance);
}

function back() {
  if (state.readOnly) return step(-1);
  return here(async () => { if (state.past.length) await load(state.past.pop()); });
}

const done = () => here(async () => {
  if (state.image.label.done || await send((label) => ({ ...label, done: true }))) await advance();
});
const undo = () => after(async () => {
  const step = state.undo.at(-1);
  if (!step) return say("There is nothing to undo.");
  if (step.number !== state.image.number) await load(step.number);
  if (step.number !== state.image.number || !(await send(() => step.label, false))) return false;
  state.undo.pop();
  say("Undone.");
  return render();
});

const toggleTag = (name) => here(() => putTag(name, !state.image.label.tags.includes(name)));

function putTag(name, on) {
  if (on) state.chosen = name;
  return send((label) => ({
    ...label,
    tags: on ? [...label.tags, name] : label.tags.filter((tag) => tag !== name),
    objects: on ? label.objects : label.objects.filter((thing) => thing.name !== name),
  }));
}

const rounded = (values) => values.map((value) => Math.round(value * 100) / 100);

function click(place, shift) {
  const [x, y] = rounded(place);
  const name = state.chosen;
  if (state.readOnly) return pick(state.image.suggestions.indexOf(picture.hit([x, y])));
  if (state.minus || shift) return refuseAt([x, y], name);
  if (!name) return say("Choose a class first.", true);
  if (state.tool === "point") {
    return change((label) => ({ ...label, objects: [...label.objects, { name, points: [[x, y, 1]] }] }));
  }
  if (!state.corner) {
    state.corner = [x, y];
    say("Click the opposite corner; Esc takes this one back.");
    return render();
  }
  const [left, top, right, bottom] = [Math.min(x, state.corner[0]), Math.min(y, state.corner[1]), Math.max(x, state.corner[0]), Math.max(y, state.corner[1])];
  state.corner = null;
  if (right - left < 2 || bottom - top < 2) {
    say("That box is too small.", true);
    return render();
  }
  const bbox = rounded([left, top, right - left, bottom - top]);
  return change((label) => ({ ...label, objects: [...label.objects, { name, bbox }] }));
}

// A place where something is not: of a suggestion there, else of the last object of the chosen class, else of the class.
function refuseAt(point, name) {
  const thing = picture.hit(point);
  if (thing) return here(() => refuse(thing, point));
  if (!name) return say("Choose a class first.", true);
  return change((label) => {
    const last = label.objects.findLast((thing) => thing.name === name);
    if (last) last.points = [...(last.points ?? []), [...point, 0]];
    else label.refused.push({ name, point });
    return label;
  });
}

const accepted = ({ name, bbox, segmentation, score }) => ({ name, bbox, ...(segmentation ? { segmentation } : {}), score, source: state.suggests });

// Whether a suggestion is still there when its turn has come, and not answered by a click before.
const isOpen = (thing) => state.image.suggestions.some((other) => JSON.stringify(other) === JSON.stringify(thing));

function accept(thing) {
  if (!thing) return say("There is no suggestion.");
  return send((label) => (isOpen(thing) ? { ...label, objects: [...label.objects, accepted(thing)] } : null));
}

function refuse(thing, point) {
  if (!thing) return say("There is no suggestion.");
  const refusal = { name: thing.name, point: point ?? thing.inside };
  return send((label) => (isOpen(thing) ? { ...label, refused: [...label.refused, refusal] } : null));
}

// The suggestion that is current when its turn has come, after those that were answered before.
const acceptCurrent = () => here(() => accept(state.image.suggestions[state.current]));
const refuseCurrent = () => here(() => refuse(state.image.suggestions[state.current]));
const acceptAll = () => change((label) => {
  const things = state.image.suggestions;
  return things.length ? { ...label, objects: [...label.objects, ...things.map(accepted)] } : null;
});

function pick(k) {
  if (k >= 0) state.current = k;
  render();
}

function turn(by) {
  const count = state.image?.suggestions.length ?? 0;
  pick(count ? (state.current + by + count) % count : -1);
}

// Showing

function show(image) {
  state.image = image;
  setClasses(image);
  state.current = Math.max(0, Math.min(state.current, image.suggestions.length - 1));
  byId("progress").textContent = state.readOnly ? `${image.number + 1} of ${state.images}` : `${image.done} of ${state.images} done`;
  render();
}

function pictureOf(number) {
  if (!pictures.has(number)) {
    const made = new Image();
    made.addEventListener("load", render);
    made.addEventListener("error", () => say("This photo cannot be read.", true));
    made.src = `/picture/${number}`;
    pictures.set(number, made);
    if (pictures.size > 20) pictures.delete(pictures.keys().next().value);
  }
  return pictures.get(number);
}

const dot = (name) => element("span", { class: "dot", colour: state.colours[name], "aria-hidden": "true" });

function tagRow(name, k, label) {
  const on = label.tags.includes(name);
  const box = element("input", { type: "checkbox", "data-key": `tag ${k}`, "aria-label": `${name} is in the photo`, onchange: (event) => { const on = event.target.checked; here(() => putTag(name, on)); } });
  box.checked = on;
  box.disabled = state.readOnly;
  const choose = element("button", { type: "button", class: "name", "data-key": `class ${k}`, "aria-pressed": `${name === state.chosen}`, title: "what clicks are about",
    onclick: () => { state.chosen = name; render(); } }, name);
  const key = k < 9 ? element("span", { class: "number", "aria-hidden": "true" }, `${k + 1}`) : "";
  return element("li", {}, box, dot(name), choose, key);
}

function suggestionRow(thing, k) {
  const small = (text, says, key, act) => element("button", { type: "button", class: "small", "data-key": `${key} ${k}`, "aria-label": `${says} ${thing.name}`, title: says, onclick: act }, text);
  const pick = element("button", { type: "button", class: "name", "data-key": `suggestion ${k}`, onclick: () => pick(k) },
    thing.name);
  return element("li", { class: k === state.current ? "current" : null }, dot(thing.name), pick, element("span", { class: "soft" }, thing.score.toFixed(2)),
    small("✓", "accept", "accept", () => here(() => accept(thing))), small("✕", "refuse", "refuse", () => here(() => refuse(thing))));
}

function described(thing) {
  const known = [[thing.segmentation, "mask"], [thing.bbox && !thing.segmentation, "box"], [thing.points?.length, "point"]];
  return known.filter(([has]) => has).map(([, word]) => word).join(", ");
}

function objectRow(thing, k, key, without) {
  const remove = element("button", { type: "button", class: "small", "data-key": `${key} ${k}`, "aria-label": `remove ${thing.name}`, title: "remove", onclick: () => change(without) }, "✕");
  return element("li", {}, dot(thing.name), element("span", { class: "name" }, `${thing.name} `, element("span", { class: "soft" }, key === "refused" ? "not here" : described(thing))), remove);
}

function fill(list, rows, empty) {
  byId(list).replaceChildren(...(rows.length ? rows : [element("li", { class: "empty" }, empty)]));
}

function render() {
  const { image } = state;
  const focus = document.activeElement?.dataset?.key;
  document.querySelectorAll("[data-tool]").forEach((button) => button.setAttribute("aria-pressed", `${button.dataset.tool === state.tool}`));
  byId("minus").setAttribute("aria-pressed", `${state.minus}`);
  if (!image) return;
  byId("file").textContent = image.file;
  byId("badge").hidden = !image.label.done;
  const { label } = image;
  const names = state.readOnly ? label.tags : state.classes;
  fill("tags", names.map((name, k) => tagRow(name, k, label)), state.readOnly ? "no labels" : "no classes yet: add one");
  fill("suggestions", image.suggestions.map(suggestionRow), state.suggests ? "nothing more" : "no run yet");
  const shown = plain(label);
  const without = (list, k) => (edited) => {
    const same = JSON.stringify(edited[list][k]) === JSON.stringify(shown[list][k]); // else a click before removed it
    return same ? { ...edited, [list]: edited[list].filter((_, other) => other !== k) } : null;
  };
  fill("objects", [...label.objects.map((thing, k) => objectRow(thing, k, "object", without("objects", k))),
    ...label.refused.map((thing, k) => objectRow(thing, k, "refused", without("refused", k)))], "no objects");
  for (const id of ["accept", "refuse"]) byId(id).disabled = !image.suggestions.length;
  byId("undo").disabled = !state.undo.length;
  byId("back").disabled = !state.past.length && !state.readOnly;
  if (focus) document.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus();
  picture.show({ image, picture: pictureOf(image.number), colours: state.colours, current: state.current, corner: state.corner });
  byId("picture").setAttribute("aria-label", `${image.file}: ${label.tags.join(", ") || "nothing"}`);
}

// Training

function showTraining({ state: now, line, stages, suggests }) {
  const running = now === "running";
  byId("training-state").textContent = now === "idle" ? "" : now;
  byId("training-line").textContent = now === "idle" ? "" : line;
  byId("training-line").classList.toggle("wrong", now === "failed");
  byId("stages").replaceChildren(...stages.map(({ name, finished, metrics }) =>
    element("li", {}, `${name}: ${finished ? "finished" : "working"} ${metrics}`)));
  if (state.readOnly) say(running || now === "failed" ? line : "", now === "failed");
  byId("train").disabled = running;
  byId("stop").hidden = !running;
  if (suggests !== state.suggests) {
    state.suggests = suggests;
    if (state.image) after(() => load(state.image.number));
  }
}

function setClasses({ classes, colours }) {
  state.classes = classes;
  state.colours = Object.fromEntries(classes.map((name, k) => [name, colours[k]]));
}

async function look() {
  const { status, data } = await call("GET", "/api/state");
  if (status === 200) {
    setClasses(data);
    state.images = data.images;
    state.readOnly = data.read_only;
    showTraining(data.training);
  }
  return { status, data };
}

async function watch() {
  const { data } = await look();
  setTimeout(watch, data.training?.state === "running" ? 2000 : 15000);
}

async function press(path) {
  const { status, data } = await call("POST", path, {});
  if (status !== 200) say(data.error, true);
  else showTraining(data);
}

async function addClass(event) {
  event.preventDefault();
  const name = byId("class-name").value;
  const { status, data } = await call("POST", "/api/classes", { name });
  if (status !== 200) return say(data.error, true);
  byId("class-name").value = "";
  state.chosen = data.classes.at(-1);
  setClasses(data);
  return render();
}

// Keys and buttons

const setTool = (tool) => { state.tool = tool; state.corner = null; render(); };
const setMinus = () => { state.minus = !state.minus; state.corner = null; render(); };
const leave = () => { state.corner = null; say(""); render(); };
const keys = {
  p: () => setTool("point"), b: () => setTool("box"), m: setMinus, j: () => turn(1), k: () => turn(-1), a: acceptCurrent,
  A: acceptAll, x: refuseCurrent, u: undo, d: done, n: next, Backspace: back, i: () => byId("picture").focus(), Escape: leave,
};
const keysToLook = { j: keys.j, k: keys.k, n: next, ArrowRight: next, Backspace: back, ArrowLeft: back };

function onKey(event) {
  const typing = event.target.matches?.("input:not([type=checkbox]), select");
  const isUndo = (event.ctrlKey || event.metaKey) && event.key === "z";
  if (typing || ((event.ctrlKey || event.metaKey || event.altKey) && !isUndo)) return;
  const name = /^[1-9]$/.test(event.key) ? state.classes[event.key - 1] : null;
  const toLabel = isUndo ? undo : name && state.image ? () => toggleTag(name) : keys[event.key];
  const act = state.readOnly ? keysToLook[event.key] : toLabel;
  if (!act) return;
  event.preventDefault();
  act();
}

async function begin() {
  history.replaceState(null, "", "/"); // the token is in a cookie by now
  addEventListener("keydown", onKey);
  for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => setTool(button.dataset.tool));
  const actions = { minus: setMinus, back, undo, refuse: refuseCurrent, accept: acceptCurrent, next, done,
    train: () => press("/api/training"), stop: () => press("/api/training/stop") };
  for (const [id, act] of Object.entries(actions)) byId(id).addEventListener("click", act);
  byId("new-class").addEventListener("submit", addClass);
  const { status, data } = await look();
  if (status !== 200) return say(data.error, true);
  byId("order").value = data.order;
  state.chosen = state.classes[0] ?? null;
  if (state.readOnly) {
    document.body.classList.add("look");
    byId("picture").removeAttribute("tabindex"); // the arrow keys turn the pages
  }
  await next();
  return setTimeout(watch, 2000);
}

begin();
