"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const points = Uint8Array.from(atob(data.points), (letter) => letter.charCodeAt(0));
const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [property, text] of Object.entries(value)) made.style.setProperty(property, text);
    else if (value !== null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const percent = (share) => (share === null ? "–" : (100 * share).toFixed(1));
const dot = (colour) => element("span", { class: "dot", style: { "--dot": colour }, "aria-hidden": "true" });

// Tables

function sortBy(table, column, direction) {
  const body = table.tBodies[0];
  const value = (row) => row.cells[column].dataset.value;
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // what is not known is last in either direction
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return direction === "ascending" ? order : -order;
  });
  body.append(...rows);
  table.querySelectorAll("thead th").forEach((head, i) => {
    if (i === column) head.setAttribute("aria-sort", direction);
    else head.removeAttribute("aria-sort");
  });
}

function makeSortable(table) {
  table.querySelectorAll("thead th button").forEach((button) => {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const first = head.classList.contains("text") ? "ascending" : "descending";
      const other = first === "ascending" ? "descending" : "ascending";
      sortBy(table, head.cellIndex, head.getAttribute("aria-sort") === first ? other : first);
    });
  });
}

function tableOf(heads, rows) {
  const head = element("tr", {}, ...heads.map(({ text, colour, title }, i) =>
    element("th", { scope: "col", class: i ? null : "text", title: title || null },
      element("button", { type: "button" }, ...(colour ? [dot(colour)] : []), text))));
  const table = element("table", { class: "bars" }, element("thead", {}, head), element("tbody", {}, ...rows));
  makeSortable(table);
  return table;
}

function barCell(share, full, colour, title) {
  if (share === null) return element("td", { "data-value": "" }, "–");
  const width = full > 0 ? Math.max(0, Math.min(100, (100 * share) / full)) : 0;
  const style = colour ? { "--share": `${width}%`, "--dot": colour } : { "--share": `${width}%` };
  return element("td", { class: colour ? "bar dotted" : "bar", style, "data-value": share, title: title || null }, percent(share));
}

function showClasses() {
  const values = data.per_class[byId("class-metric").value];
  const heads = [{ text: "class" }, ...data.rows.map((row) => ({ text: row.name, colour: row.colour }))];
  const rows = data.classes.map((name, c) =>
    element("tr", {}, element("th", { scope: "row", "data-value": name }, name),
      ...data.rows.map((row, r) => barCell(values[r][c], 1, row.colour))));
  byId("class-table").replaceChildren(tableOf(heads, rows));
}

function showErrors() {
  const { names, rows } = data.errors;
  const known = rows.filter((row) => row !== null);
  const most = Math.max(...known.flatMap((row) => row.gains), 0.01);
  const heads = [{ text: "method" }, { text: "AP50" }, ...names.map(([name, title]) => ({ text: name, title }))];
  const lines = data.rows.map((row, r) => {
    const found = rows[r];
    const cells = found
      ? [element("td", { "data-value": found.ap === null ? "" : found.ap }, percent(found.ap)),
        ...found.gains.map((gain, k) => barCell(gain, most, row.colour, `${found.counts[k]} of them`))]
      : Array.from({ length: names.length + 1 }, () => element("td", { "data-value": "" }, "–"));
    return element("tr", {}, element("th", { scope: "row", "data-value": row.name }, dot(row.colour), row.name), ...cells);
  });
  byId("error-table").replaceChildren(tableOf(heads, lines));
}

// Gallery

const KIND_COLOURS = { correct: "#2e9e5b", classification: "#d0479b", localisation: "#e39a1c", both: "#8a63d2",
  duplicate: "#2f8fd0", background: "#d94a3d", ignored: "#8a8f98" };
const state = { at: 0, shown: [], off: new Set(), alone: null, pictures: new Map() };
const roles = (role) => data.sources.map((source, s) => [source, s]).filter(([source]) => source.role === role).map(([, s]) => s);
const methods = roles("method");
const tiled = data.rows.length === 1; // all images at once, each with one source; a click opens the others

function objectsOf(image) {
  let offset = 2 * image.at;
  return image.objects.map((things) => things.map(([label, score, kind, sure, ...rings]) => {
    const parts = rings.map((count) => {
      const ring = points.subarray(offset, offset + 2 * count);
      offset += 2 * count;
      return ring;
    });
    return { label, score, kind, sure, rings: parts };
  }));
}

function colourOf(thing, k) {
  if (thing.label < 0) return `hsl(${(k * 137.5) % 360} 65% 55%)`;
  if (byId("colour").value === "kind" && thing.kind >= 0) return KIND_COLOURS[data.kinds[thing.kind]];
  return data.colours[thing.label][k % 4];
}

function pathOf(thing, scale) {
  const path = new Path2D();
  for (const ring of thing.rings) {
    for (let i = 0; i < ring.length; i += 2) {
      if (i) path.lineTo(ring[i] * scale, ring[i + 1] * scale);
      else path.moveTo(ring[0] * scale, ring[1] * scale);
    }
    path.closePath();
  }
  return path;
}

function visible(source, things) {
  if (source.role !== "method" || byId("unsure").checked) return things;
  const sure = things.filter((thing) => thing.sure);
  return sure.length ? sure : things.slice(0, 1); // as in overlays: the best, with a question mark
}

const nameOf = (thing) => (thing.label < 0 ? "proposal" : data.classes[thing.label]);

function describe(thing, role) {
  const score = role === "truth" ? "" : ` ${(thing.score / 100).toFixed(2)}`;
  return nameOf(thing) + score + (thing.kind >= 0 ? `, ${data.kinds[thing.kind]}` : "");
}

function paint(canvas, picture, image, source, things, pointed) {
  const long = Math.max(image.width, image.height);
  canvas.style.setProperty("--ratio", image.width / image.height);
  const factor = ((canvas.clientWidth || 320) * devicePixelRatio) / image.width; // lines and names as large as they are meant
  canvas.width = Math.round(image.width * factor);
  canvas.height = Math.round(image.height * factor);
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const scale = (long * factor) / data.grid;
  const line = (source.role === "proposals" ? 1.2 : 1.6) * devicePixelRatio;
  const seen = {};
  const drawn = things.map((thing) => {
    seen[thing.label] = (seen[thing.label] ?? -1) + 1; // objects of a class have shades of its colour
    return { thing, path: pathOf(thing, scale), colour: colourOf(thing, seen[thing.label]) };
  });
  context.lineJoin = "round";
  for (const { thing, path, colour } of [...drawn].reverse()) { // the surest on top
    if (source.role !== "proposals") {
      context.globalAlpha = thing === pointed ? 0.7 : 0.42;
      context.fillStyle = colour;
      context.fill(path, "evenodd");
    }
    context.globalAlpha = thing.sure ? 1 : 0.6;
    context.setLineDash(thing.sure ? [] : [4 * line, 3 * line]);
    context.strokeStyle = "rgba(255,255,255,.85)";
    context.lineWidth = 1.8 * line;
    context.stroke(path);
    context.strokeStyle = colour;
    context.lineWidth = thing === pointed ? 2 * line : line;
    context.stroke(path);
  }
  context.globalAlpha = 1;
  context.setLineDash([]);
  if (byId("names").checked && source.role !== "proposals") {
    const placed = [];
    const boxes = drawn.map(({ thing }) => boxOf(thing, scale));
    drawn.forEach((each, k) => plate(context, canvas, each, boxes, k, placed));
  }
  canvas.drawn = drawn;
}

function boxOf(thing, scale) {
  const box = [Infinity, Infinity, -Infinity, -Infinity];
  for (const ring of thing.rings.slice(0, 1)) {
    for (let i = 0; i < ring.length; i += 2) {
      const [x, y] = [ring[i] * scale, ring[i + 1] * scale];
      [box[0], box[1], box[2], box[3]] = [Math.min(box[0], x), Math.min(box[1], y), Math.max(box[2], x), Math.max(box[3], y)];
    }
  }
  return box;
}

const shared = (a, b) => Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));

// Writes a name at its object, where it hides neither another name nor half of another object; nowhere if there is no such place.
function plate(context, canvas, { thing, colour }, boxes, k, placed) {
  if (!thing.rings.length) return;
  const size = 12 * devicePixelRatio;
  context.font = `600 ${size}px system-ui, sans-serif`;
  const text = nameOf(thing) + (thing.sure ? "" : "?");
  const [width, height] = [context.measureText(text).width + 0.7 * size, 1.35 * size];
  const [x1, y1, x2, y2] = boxes[k];
  const [middle, gap] = [(x1 + x2 - width) / 2, 0.2 * size];
  const places = [[middle, y1 - height - gap], [middle, y1 + gap], [middle, y2 + gap], [middle, y2 - height - gap], [middle, (y1 + y2 - height) / 2],
    [x1, y1 - height - gap], [x2 - width, y2 + gap], [x2 + gap, y1], [x1 - width - gap, y1]];
  const spot = places.map(([x, y]) => [Math.min(Math.max(x, 0), canvas.width - width), Math.min(Math.max(y, 0), canvas.height - height)])
    .map(([x, y]) => [x, y, x + width, y + height])
    .find((box) => !placed.some((other) => shared(box, other)) &&
      !boxes.some((other, o) => o !== k && shared(box, other) > (other[2] - other[0]) * (other[3] - other[1]) / 2));
  if (!spot) return;
  placed.push(spot);
  const [x, y] = spot;
  context.fillStyle = colour;
  context.globalAlpha = thing.sure ? 0.95 : 0.7;
  context.fillRect(x, y, width, height);
  context.globalAlpha = 1;
  context.fillStyle = light(colour) ? "#1e2024" : "#fff";
  context.textBaseline = "middle";
  context.fillText(text, x + 0.35 * size, y + 0.55 * height);
}

function light(colour) {
  const parts = /^#(..)(..)(..)$/.exec(colour);
  if (!parts) return false;
  const [r, g, b] = parts.slice(1).map((part) => parseInt(part, 16));
  return 0.299 * r + 0.587 * g + 0.114 * b > 140;
}

function pictureOf(image) {
  if (!state.pictures.has(image)) {
    const picture = new Image();
    picture.src = `data:image/jpeg;base64,${image.jpeg}`;
    state.pictures.set(image, picture);
    if (state.pictures.size > 60) state.pictures.delete(state.pictures.keys().next().value);
  }
  return state.pictures.get(image);
}

function counted(source, things) {
  if (!things.length) return "nothing";
  if (source.role !== "method" || things.some((thing) => thing.kind < 0)) return `${things.length}`;
  const right = things.filter((thing) => data.kinds[thing.kind] === "correct").length;
  return `${right} of ${things.length} correct`;
}

const tagsOf = (image) => (image.tags.length ? [`tags: ${image.tags.join(", ")}`] : []);
const titleOf = (image) => [image.name, ...tagsOf(image)].join("; ");
const whenRead = (picture, then) => {
  if (picture.complete && picture.naturalWidth) then();
  else picture.addEventListener("load", then, { once: true });
};

function showPanels() {
  const image = state.shown[state.at];
  byId("legend").hidden = byId("colour").value !== "kind";
  byId("image-title").textContent = image ? titleOf(image) : "No image has this class";
  byId("under").textContent = "";
  const figures = [...byId("panels").children];
  const isOff = (s) => (state.alone === null ? state.off.has(s) : s !== state.alone);
  figures.forEach((figure, s) => { figure.hidden = !image || isOff(s); });
  byId("panels").classList.toggle("alone", state.alone !== null);
  if (!image || !byId("stage").checkVisibility()) return;
  const picture = pictureOf(image);
  const found = objectsOf(image);
  whenRead(picture, () => {
    if (state.shown[state.at] !== image) return; // another has been picked while this one was read
    data.sources.forEach((source, s) => {
      if (isOff(s)) return;
      const things = visible(source, found[s]);
      const [caption, canvas] = figures[s].children;
      caption.lastChild.textContent = counted(source, things);
      canvas.setAttribute("aria-label", `${source.name}: ${things.map((t) => describe(t, source.role)).join("; ") || "nothing"}`);
      canvas.repaint = (pointed) => paint(canvas, picture, image, source, things, pointed);
      canvas.repaint(null);
    });
    byId("panels").dataset.image = image.name;
  });
}

function showTile(canvas) {
  const image = state.shown[canvas.dataset.at];
  const s = Number(byId("tile-source").value);
  const picture = pictureOf(image);
  whenRead(picture, () => {
    const things = visible(data.sources[s], objectsOf(image)[s]);
    paint(canvas, picture, image, data.sources[s], things, null);
    canvas.setAttribute("aria-label", things.map((t) => describe(t, data.sources[s].role)).join("; ") || "nothing");
  });
}

function showAll() {
  showPanels();
  document.querySelectorAll("#images canvas").forEach((canvas) => { if (canvas.drawn) showTile(canvas); });
}

function point(event, source) {
  const canvas = event.currentTarget;
  if (!canvas.drawn) return;
  const box = canvas.getBoundingClientRect();
  const [x, y] = [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
  const context = canvas.getContext("2d");
  const hit = canvas.drawn.find(({ path }) => context.isPointInPath(path, x, y, "evenodd"));
  const thing = hit ? hit.thing : null;
  if (thing === canvas.pointed) return;
  canvas.pointed = thing;
  canvas.repaint(thing);
  byId("under").textContent = thing ? `${source.name}: ${describe(thing, source.role)}` : "";
}

function makePanels() {
  data.sources.forEach((source, s) => {
    const canvas = element("canvas", { role: "img", onclick: () => zoom(state.alone === null ? s : null), onmousemove: (e) => point(e, source), onmouseleave: (e) => {
      e.currentTarget.pointed = null;
      if (e.currentTarget.repaint) e.currentTarget.repaint(null);
      byId("under").textContent = "";
    } });
    const colour = source.row < 0 ? null : data.rows[source.row].colour;
    const caption = element("figcaption", {}, element("span", { title: source.name }, ...(colour ? [dot(colour)] : []), source.name), element("span", { class: "soft" }));
    byId("panels").append(element("figure", { "data-source": source.name }, caption, canvas));
    byId("toggles").append(element("button", { type: "button", "aria-pressed": "true", "data-source": source.name, onclick: () => toggle(s) },
      ...(colour ? [dot(colour)] : []), source.name));
    byId("tile-source").append(element("option", { value: s, ...(s === methods[0] ? { selected: "" } : {}) }, source.name));
  });
}

function toggle(s) {
  if (!data.sources[s]) return;
  if (!state.off.delete(s)) state.off.add(s);
  byId("toggles").children[s].setAttribute("aria-pressed", String(!state.off.has(s)));
  showPanels();
}

// Opens the picked image, or one of its sources alone, over the page; from one alone back to all where only the dialog has all.
function zoom(alone) {
  const dialog = byId("zoom");
  if (dialog.open && alone === null && !tiled) return dialog.close();
  state.alone = alone;
  if (!dialog.open) {
    dialog.append(byId("stage"));
    dialog.showModal();
  }
  showPanels();
}

function unzoom() {
  state.alone = null;
  document.querySelector(".viewer").append(byId("stage"));
  showPanels();
}

const lazily = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    if (target.tagName === "CANVAS") showTile(target);
    else target.src = `data:image/jpeg;base64,${state.shown[target.dataset.at].jpeg}`;
    lazily.unobserve(target);
  }
}, { rootMargin: "400px" });

const surest = (image) => Math.max(0, ...methods.flatMap((s) => image.objects[s].map((thing) => thing[1])));
const KEYS = { apart: (image) => [-image.apart, -image.wrong], wrong: (image) => [-image.wrong], right: (image) => [image.wrong],
  score: (image) => [-surest(image)], name: () => [], order: (image) => [image.order] };

function inOrder(order) {
  const keys = new Map(data.images.map((image) => [image, KEYS[order](image)]));
  return (a, b) => {
    const k = keys.get(a).findIndex((value, i) => value !== keys.get(b)[i]);
    if (k >= 0) return keys.get(a)[k] - keys.get(b)[k];
    return order === "name" ? a.name.localeCompare(b.name, undefined, { numeric: true }) : a.order - b.order;
  };
}

// What is said of an image in the list: the value that it is sorted by, else its distance from the truth.
function saidOf(image, order) {
  if (order === "score") return { text: `score ${(surest(image) / 100).toFixed(2)}`, share: surest(image) / 100 };
  const [key, , words] = data.orders.find(([name, , said]) => name === order && said) || data.orders.find(([name]) => name === "wrong");
  const share = key === "apart" ? image.apart : image.wrong;
  return { text: `${Math.round(100 * share)} % ${words}`, share };
}

function listImages() {
  const order = byId("order").value;
  const wanted = byId("class-filter").value;
  const has = (image) => wanted === "" || image.objects.some((things, s) =>
    ["truth", "method"].includes(data.sources[s].role) && things.some((thing) => thing[0] === Number(wanted) && thing[3]));
  state.shown = data.images.filter(has).sort(inOrder(order));
  lazily.disconnect();
  byId("images").replaceChildren(...state.shown.map((image, i) => {
    const preview = tiled ? element("canvas", { role: "img", "data-at": i, width: image.width, height: image.height }) : element("img", { alt: "", "data-at": i });
    lazily.observe(preview);
    const { text, share } = saidOf(image, order);
    return element("li", { role: "option", id: `image-${i}`, "aria-selected": "false", onclick: () => { pick(i); if (tiled) zoom(null); } }, preview,
      element("span", {}, element("b", { title: titleOf(image) }, image.name.split("/").pop()),
        element("span", { class: "soft" }, [text, ...tagsOf(image)].join("; ")),
        element("span", { class: "meter", style: { "--share": `${100 * share}%` } })));
  }));
  pick(0);
}

function pick(i) {
  const items = byId("images").children;
  if (items[state.at]) items[state.at].setAttribute("aria-selected", "false");
  state.at = Math.max(0, Math.min(i, state.shown.length - 1));
  byId("previous").disabled = state.at === 0;
  byId("next").disabled = state.at >= state.shown.length - 1;
  const item = items[state.at];
  if (item) {
    item.setAttribute("aria-selected", "true");
    byId("images").setAttribute("aria-activedescendant", item.id);
    const list = item.closest(".list"); // not scrollIntoView, which moves the page as well
    const [start, end] = [item.offsetTop - list.clientHeight + item.offsetHeight, item.offsetTop];
    list.scrollTop = Math.min(Math.max(list.scrollTop, start), end);
    list.scrollLeft = Math.min(Math.max(list.scrollLeft, item.offsetLeft - list.clientWidth + item.offsetWidth), item.offsetLeft);
  }
  showPanels();
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || ["SELECT", "INPUT"].includes(document.activeElement.tagName)) return;
  const inList = document.activeElement === byId("images");
  const flip = (box) => { box.checked = !box.checked; showAll(); };
  const keys = { ArrowRight: () => pick(state.at + 1), ArrowLeft: () => pick(state.at - 1), t: () => roles("truth").forEach(toggle),
    u: () => flip(byId("unsure")), e: () => { byId("colour").value = byId("colour").value === "kind" ? "class" : "kind"; showAll(); } };
  if (inList) Object.assign(keys, { ArrowDown: keys.ArrowRight, ArrowUp: keys.ArrowLeft, Home: () => pick(0), End: () => pick(state.shown.length - 1) });
  if (inList && tiled) keys.Enter = () => zoom(null);
  if (/^[1-9]$/.test(event.key)) toggle(methods[event.key - 1]);
  else if (keys[event.key]) keys[event.key]();
  else return;
  event.preventDefault();
}

// A finger that moves sideways turns to the next image or back.
function makeSwipeable(part) {
  let start = null;
  part.addEventListener("touchstart", (event) => { start = event.touches.length === 1 ? event.touches[0] : null; }, { passive: true });
  part.addEventListener("touchend", (event) => {
    if (!start) return;
    const [right, down] = [event.changedTouches[0].clientX - start.clientX, event.changedTouches[0].clientY - start.clientY];
    if (Math.abs(right) > 50 && Math.abs(right) > 2 * Math.abs(down)) pick(state.at + (right < 0 ? 1 : -1));
  }, { passive: true });
}

function beginGallery() {
  document.querySelector(".viewer").classList.toggle("tiles", tiled);
  byId("tile-choice").hidden = !tiled || data.sources.length < 2;
  data.orders.forEach(([key, label]) => byId("order").append(element("option", { value: key }, label)));
  data.classes.slice(0, data.things).forEach((name, c) => byId("class-filter").append(element("option", { value: c }, name)));
  data.kinds.forEach((kind) => byId("legend").append(dot(KIND_COLOURS[kind]), `${kind} `));
  const judged = data.images.some((image) => image.objects.flat().some((thing) => thing[2] >= 0));
  byId("colour").closest("label").hidden = !judged;
  makePanels();
  listImages();
  for (const id of ["order", "class-filter"]) byId(id).addEventListener("change", listImages);
  for (const id of ["colour", "unsure", "names", "tile-source"]) byId(id).addEventListener("change", showAll);
  byId("previous").addEventListener("click", () => pick(state.at - 1));
  byId("next").addEventListener("click", () => pick(state.at + 1));
  byId("close").addEventListener("click", () => byId("zoom").close());
  byId("zoom").addEventListener("close", unzoom);
  byId("zoom").addEventListener("click", (event) => { if (event.target === byId("zoom")) byId("zoom").close(); });
  makeSwipeable(byId("stage"));
  document.addEventListener("keydown", press);
  let waiting = 0;
  window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(showAll, 200); });
}

// Begin

document.querySelectorAll("table.sortable").forEach(makeSortable);
if (byId("class-table")) {
  for (const metric of Object.keys(data.per_class)) byId("class-metric").append(element("option", { value: metric }, metric));
  byId("class-metric").addEventListener("change", showClasses);
  showClasses();
}
if (byId("error-table")) showErrors();
if (byId("images")) beginGallery();
