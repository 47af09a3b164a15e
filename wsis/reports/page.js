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
  if (!known.length) {
    byId("error-table").replaceChildren(element("p", { class: "soft" }, "No run here detects objects by itself."));
    return;
  }
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
const state = { at: 0, shown: [], off: new Set(), pictures: new Map() };

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

const visible = (source, things) =>
  things.filter((thing) => source.role !== "method" || thing.sure || byId("unsure").checked);
const nameOf = (thing) => (thing.label < 0 ? "proposal" : data.classes[thing.label]);

function describe(thing, role) {
  const score = role === "truth" ? "" : ` ${(thing.score / 100).toFixed(2)}`;
  return nameOf(thing) + score + (thing.kind >= 0 ? `, ${data.kinds[thing.kind]}` : "");
}

function paint(canvas, picture, image, source, things, pointed) {
  const long = Math.max(image.width, image.height);
  const factor = Math.max(1, 640 / long);
  canvas.width = Math.round(image.width * factor);
  canvas.height = Math.round(image.height * factor);
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const scale = (long * factor) / data.grid;
  const line = source.role === "proposals" ? 2 : 3;
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
    context.setLineDash(thing.sure ? [] : [8, 6]);
    context.strokeStyle = "rgba(255,255,255,.85)";
    context.lineWidth = line + 2;
    context.stroke(path);
    context.strokeStyle = colour;
    context.lineWidth = thing === pointed ? line + 2 : line;
    context.stroke(path);
  }
  context.globalAlpha = 1;
  context.setLineDash([]);
  if (byId("names").checked && source.role !== "proposals") {
    const placed = [];
    drawn.forEach((each) => plate(context, canvas, each, scale, placed));
  }
  canvas.drawn = drawn;
}

function plate(context, canvas, { thing, colour }, scale, placed) {
  if (!thing.rings.length) return;
  const ring = thing.rings[0];
  let top = 0;
  for (let i = 2; i < ring.length; i += 2) if (ring[i + 1] < ring[top + 1]) top = i;
  context.font = "600 17px system-ui, sans-serif";
  const text = nameOf(thing);
  const width = context.measureText(text).width + 10;
  const x = Math.min(Math.max(ring[top] * scale - width / 2, 0), canvas.width - width);
  let y = Math.min(Math.max(ring[top + 1] * scale - 26, 0), canvas.height - 22);
  const taken = () => placed.some(([left, right, above]) => x < right && left < x + width && Math.abs(above - y) < 22);
  for (let tries = 0; tries < 8 && taken(); tries++) y = Math.min(y + 23, canvas.height - 22);
  placed.push([x, x + width, y]);
  context.fillStyle = colour;
  context.globalAlpha = thing.sure ? 0.95 : 0.6;
  context.fillRect(x, y, width, 22);
  context.globalAlpha = 1;
  context.fillStyle = light(colour) ? "#1e2024" : "#fff";
  context.textBaseline = "middle";
  context.fillText(text, x + 5, y + 12);
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

function showPanels() {
  const image = state.shown[state.at];
  byId("legend").hidden = byId("colour").value !== "kind";
  byId("image-title").textContent = image ? image.name : "No image has this class";
  byId("under").textContent = "";
  const figures = [...byId("panels").children];
  figures.forEach((figure, s) => { figure.hidden = !image || state.off.has(s); });
  if (!image) return;
  const picture = pictureOf(image);
  const found = objectsOf(image);
  const draw = () => {
    if (state.shown[state.at] !== image) return; // another has been picked while this one was read
    data.sources.forEach((source, s) => {
      if (state.off.has(s)) return;
      const things = visible(source, found[s]);
      const [caption, canvas] = figures[s].children;
      caption.lastChild.textContent = counted(source, things);
      canvas.setAttribute("aria-label", `${source.name}: ${things.map((t) => describe(t, source.role)).join("; ") || "nothing"}`);
      canvas.repaint = (pointed) => paint(canvas, picture, image, source, things, pointed);
      canvas.repaint(null);
    });
    byId("panels").dataset.image = image.name;
  };
  if (picture.complete && picture.naturalWidth) draw();
  else picture.addEventListener("load", draw, { once: true });
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
    const canvas = element("canvas", { role: "img", onmousemove: (e) => point(e, source), onmouseleave: (e) => {
      e.currentTarget.pointed = null;
      if (e.currentTarget.repaint) e.currentTarget.repaint(null);
      byId("under").textContent = "";
    } });
    const colour = source.row < 0 ? null : data.rows[source.row].colour;
    const caption = element("figcaption", {}, element("span", { title: source.name }, ...(colour ? [dot(colour)] : []), source.name), element("span", { class: "soft" }));
    byId("panels").append(element("figure", { "data-source": source.name }, caption, canvas));
    byId("toggles").append(element("button", { type: "button", "aria-pressed": "true", "data-source": source.name, onclick: () => toggle(s) },
      ...(colour ? [dot(colour)] : []), source.name));
  });
}

function toggle(s) {
  if (!data.sources[s]) return;
  if (!state.off.delete(s)) state.off.add(s);
  byId("toggles").children[s].setAttribute("aria-pressed", String(!state.off.has(s)));
  showPanels();
}

const lazily = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    target.src = `data:image/jpeg;base64,${data.images[target.dataset.at].jpeg}`;
    lazily.unobserve(target);
  }
}, { root: document.querySelector(".list"), rootMargin: "400px" });

function listImages() {
  const order = byId("order").value;
  const wanted = byId("class-filter").value;
  const has = (image) => wanted === "" || image.objects.some((things, s) =>
    ["truth", "method"].includes(data.sources[s].role) && things.some((thing) => thing[0] === Number(wanted) && thing[3]));
  state.shown = data.images.filter(has).sort((a, b) => (order === "order" ? a.order - b.order : b[order] - a[order] || a.order - b.order));
  lazily.disconnect();
  byId("images").replaceChildren(...state.shown.map((image, i) => {
    const thumb = element("img", { alt: "", "data-at": data.images.indexOf(image) });
    lazily.observe(thumb);
    const share = order === "order" ? image.apart : image[order];
    const said = order === "wrong" ? "from the truth" : "apart";
    return element("li", { role: "option", id: `image-${i}`, "aria-selected": "false", onclick: () => pick(i) }, thumb,
      element("span", {}, element("b", { title: image.name }, image.name.split("/").pop()),
        element("span", { class: "soft" }, `${Math.round(100 * share)} % ${said}`),
        element("span", { class: "meter", style: { "--share": `${100 * share}%` } })));
  }));
  pick(0);
}

function pick(i) {
  const items = byId("images").children;
  if (items[state.at]) items[state.at].setAttribute("aria-selected", "false");
  state.at = Math.max(0, Math.min(i, state.shown.length - 1));
  const item = items[state.at];
  if (item) {
    item.setAttribute("aria-selected", "true");
    byId("images").setAttribute("aria-activedescendant", item.id);
    const list = item.closest(".list");
    if (item.offsetTop < list.scrollTop) list.scrollTop = item.offsetTop;
    else if (item.offsetTop + item.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = item.offsetTop + item.offsetHeight - list.clientHeight;
  }
  showPanels();
}

const methods = data.sources.map((source, s) => [source, s]).filter(([source]) => source.role === "method").map(([, s]) => s);

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || ["SELECT", "INPUT"].includes(document.activeElement.tagName)) return;
  const inList = document.activeElement === byId("images");
  const flip = (box) => { box.checked = !box.checked; showPanels(); };
  const keys = { ArrowRight: () => pick(state.at + 1), ArrowLeft: () => pick(state.at - 1), t: () => toggle(0),
    u: () => flip(byId("unsure")), e: () => { byId("colour").value = byId("colour").value === "kind" ? "class" : "kind"; showPanels(); } };
  if (inList) Object.assign(keys, { ArrowDown: keys.ArrowRight, ArrowUp: keys.ArrowLeft, Home: () => pick(0), End: () => pick(state.shown.length - 1) });
  if (/^[1-9]$/.test(event.key)) toggle(methods[event.key - 1]);
  else if (keys[event.key]) keys[event.key]();
  else return;
  event.preventDefault();
}

// Begin

makeSortable(document.querySelector("#metrics table"));
for (const metric of Object.keys(data.per_class)) byId("class-metric").append(element("option", { value: metric }, metric));
byId("class-metric").addEventListener("change", showClasses);
showClasses();
showErrors();
for (const part of document.querySelectorAll("#gallery > .controls, .viewer")) part.hidden = !data.images.length;
if (data.images.length) {
  data.classes.slice(0, data.things).forEach((name, c) => byId("class-filter").append(element("option", { value: c }, name)));
  data.kinds.forEach((kind) => byId("legend").append(dot(KIND_COLOURS[kind]), `${kind} `));
  makePanels();
  if (methods.length < 2) byId("order").querySelector("[value=apart]").remove();
  listImages();
  for (const id of ["order", "class-filter"]) byId(id).addEventListener("change", listImages);
  for (const id of ["colour", "unsure", "names"]) byId(id).addEventListener("change", showPanels);
  document.addEventListener("keydown", press);
}
