"use strict";
// Draws a photo with its label and suggestions, and says where it is clicked. Places are in pixels of the photo.

const NUDGE = 0.01; // of the longer side, for an arrow key; ten times with Shift

export class Picture {
  constructor(canvas, onClick) {
    this.canvas = canvas;
    this.onClick = onClick;
    this.shown = null; // {image, picture, colours, current, corner}
    this.pointer = null; // where the mouse or the cross of the keyboard is
    this.cross = false;
    canvas.addEventListener("click", (event) => this.click(event));
    canvas.addEventListener("pointermove", (event) => {
      if (event.pointerType !== "mouse" || !this.shown) return;
      this.pointer = this.place(event);
      this.cross = false;
      if (this.shown.corner) this.draw();
    });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => { this.cross = false; this.draw(); });
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
    addEventListener("resize", () => this.draw());
  }

  show(shown) {
    if (!this.shown || this.shown.image.number !== shown.image.number) this.pointer = null;
    this.shown = shown;
    this.draw();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    const { width, height } = this.shown.image;
    const within = (value, side) => Math.min(Math.max(value, 0), side - 0.01);
    return [within(((event.clientX - box.left) / box.width) * width, width), within(((event.clientY - box.top) / box.height) * height, height)];
  }

  click(event) {
    if (!this.shown) return;
    this.onClick(this.place(event), event.shiftKey);
  }

  key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!this.shown || (!step && event.key !== "Enter")) return;
    event.preventDefault();
    const { width, height } = this.shown.image;
    this.pointer ??= [width / 2, height / 2];
    if (event.key === "Enter") {
      this.onClick(this.pointer, event.shiftKey);
      return;
    }
    const far = Math.max(1, NUDGE * Math.max(width, height)) * (event.shiftKey ? 10 : 1);
    const [x, y] = this.pointer;
    this.pointer = [Math.min(Math.max(x + step[0] * far, 0), width - 0.01), Math.min(Math.max(y + step[1] * far, 0), height - 0.01)];
    this.cross = true;
    this.draw();
  }

  // Returns the smallest suggestion at a place, if there is one.
  hit([x, y]) {
    const context = this.canvas.getContext("2d");
    const area = ({ bbox }) => bbox[2] * bbox[3];
    const found = this.shown.image.suggestions.filter((thing) => context.isPointInPath(pathOf(thing, 1), x, y, "evenodd"));
    return found.sort((a, b) => area(a) - area(b))[0];
  }

  draw() {
    if (!this.shown) return;
    const { canvas } = this;
    const { image, picture, colours, current, corner } = this.shown;
    const ratio = image.width / image.height;
    const room = canvas.parentElement;
    const style = getComputedStyle(room);
    const wide = room.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    const narrow = matchMedia("(max-width: 50rem)").matches;
    const tall = narrow ? 0.58 * innerHeight : room.clientHeight - 60;
    const width = Math.max(50, Math.min(wide, tall * ratio));
    canvas.style.width = `${width}px`;
    canvas.style.height = `${width / ratio}px`;
    canvas.width = Math.round(width * devicePixelRatio);
    canvas.height = Math.round((width / ratio) * devicePixelRatio);
    const context = canvas.getContext("2d");
    if (picture.complete && picture.naturalWidth) context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    const pen = { context, scale: canvas.width / image.width, line: 1.7 * devicePixelRatio };
    const suggested = image.suggestions.map((thing, k) => ({ thing, mark: "?", strong: k === current }));
    const drawn = [...suggested, ...image.label.objects.map((thing) => ({ thing, mark: "", strong: false }))];
    drawn.sort((a, b) => a.strong - b.strong); // the current one on top
    drawn.forEach((each) => drawThing(pen, each, colours[each.thing.name]));
    drawn.forEach((each) => drawName(pen, each, colours[each.thing.name]));
    drawn.forEach(({ thing }) => (thing.points ?? []).forEach((point) => drawPoint(pen, point, colours[thing.name])));
    image.label.refused.forEach(({ name, point }) => drawPoint(pen, [...point, 0], colours[name]));
    if (corner) drawBox(pen, corner, this.pointer ?? corner);
    if (this.cross && this.pointer) drawCross(pen, this.pointer, canvas);
    canvas.dataset.drawn = picture.complete ? image.file : "";
  }
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
  if (!thing.rings.length && thing.bbox) path.rect(...thing.bbox.map((side) => side * scale));
  return path;
}

function drawThing({ context, scale, line }, { thing, mark, strong }, colour) {
  const path = pathOf(thing, scale);
  context.lineJoin = "round";
  context.globalAlpha = strong ? 0.5 : 0.28;
  context.fillStyle = colour;
  if (thing.rings.length) context.fill(path, "evenodd");
  context.globalAlpha = 1;
  context.setLineDash([]);
  context.strokeStyle = "rgba(255,255,255,.85)";
  context.lineWidth = line * (strong ? 3 : 2);
  context.stroke(path);
  context.setLineDash(mark ? [4 * line, 3 * line] : []);
  context.strokeStyle = colour;
  context.lineWidth = line * (strong ? 2 : 1.2);
  context.stroke(path);
  context.setLineDash([]);
}

function drawName({ context, scale }, { thing: { name, bbox }, mark }, colour) {
  if (!bbox) return;
  const text = name + mark;
  const size = 12 * devicePixelRatio;
  context.font = `600 ${size}px system-ui, sans-serif`;
  const width = context.measureText(text).width + 0.7 * size;
  const x = Math.min(Math.max(bbox[0] * scale, 0), Math.max(0, context.canvas.width - width));
  const y = Math.max(bbox[1] * scale - 1.35 * size, 0);
  context.fillStyle = colour;
  context.fillRect(x, y, width, 1.35 * size);
  context.fillStyle = isLight(colour) ? "#1e2024" : "#fff";
  context.textBaseline = "middle";
  context.fillText(text, x + 0.35 * size, y + 0.72 * size);
}

function isLight(colour) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return 0.299 * r + 0.587 * g + 0.114 * b > 140;
}

function drawPoint({ context, scale, line }, [x, y, label], colour) {
  const radius = 3.6 * line;
  context.beginPath();
  context.arc(x * scale, y * scale, radius, 0, 2 * Math.PI);
  context.fillStyle = label ? colour : "#fff";
  context.fill();
  context.lineWidth = line;
  context.strokeStyle = label ? "#fff" : colour;
  context.stroke();
  if (label) return;
  const arm = 0.5 * radius;
  context.beginPath();
  for (const [dx, dy] of [[arm, arm], [arm, -arm]]) {
    context.moveTo(x * scale - dx, y * scale - dy);
    context.lineTo(x * scale + dx, y * scale + dy);
  }
  context.strokeStyle = "#b3261e";
  context.stroke();
}

function drawBox({ context, scale, line }, [x1, y1], [x2, y2]) {
  context.lineWidth = line;
  for (const [colour, dash] of [["#fff", []], ["#1e2024", [3 * line, 3 * line]]]) {
    context.strokeStyle = colour;
    context.setLineDash(dash);
    context.strokeRect(x1 * scale, y1 * scale, (x2 - x1) * scale, (y2 - y1) * scale);
  }
  context.setLineDash([]);
  drawPoint({ context, scale, line }, [x1, y1, 1], "#1e2024");
}

function drawCross({ context, scale, line }, [x, y], canvas) {
  for (const [colour, width] of [["rgba(255,255,255,.8)", 2 * line], ["#1e2024", 0.8 * line]]) {
    context.beginPath();
    context.moveTo(x * scale, 0);
    context.lineTo(x * scale, canvas.height);
    context.moveTo(0, y * scale);
    context.lineTo(canvas.width, y * scale);
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.stroke();
  }
}
