// The picture with its points and its mask. Points are whole pixels of the picture, (0, 0) in the upper left corner.
//
// What a person does is `props.value`: {picture, points: [[handle, target], ...], mask, revision}. What the server
// says comes by other props, so that no answer overwrites a click that was made meanwhile:
//   scene   {number, picture, url, width, height, points, mask, result}    shown anew whenever it changes; the number
//           does each time, since gradio tells of no prop that is what it was
//   preview {revision, url, paths}, {revision, text} or false      shown while it fits the points
//   live    {url, paths, targets, text, badge, share} or false     shown while an edit runs
//   parcel  [{url, name}, ...]                                     files for the browser's downloads
const HANDLE = "#D55E00", TARGET = "#0072B2", PIN = "#009E73", PATH = "#F0E442"; // Okabe and Ito's
const REACH = 11; // how near to a point a press takes hold of it, in pixels of the screen
const root = element.querySelector(".stage");
const view = root.querySelector(".view"), canvas = root.querySelector("canvas"), ink = canvas.getContext("2d");
const find = (what) => root.querySelector(what);

const state = {
  picture: null, image: null, width: 0, height: 0, zoom: 1, left: 0, top: 0, fitted: true,
  pairs: [], pending: null, mask: null, revision: 0, past: [], tool: "drag", grip: null, chosen: null, hover: null,
  result: null, preview: null, live: null, divide: 0.5, box: null, stroke: null,
};

function load(url) {
  if (!url) return Promise.resolve(null);
  const image = new Image();
  return new Promise((resolve) => { image.onload = () => resolve(image); image.onerror = () => resolve(null); image.src = url; });
}
const newest = {}; // of what the server says by each prop
async function loadFor(prop, ...urls) { // pictures, or nothing if the server says something newer while they load
  const mine = (newest[prop] = {});
  const images = await Promise.all(urls.map(load));
  return newest[prop] === mine ? images : null;
}

// --- from the screen to the picture and back ---

function fit() {
  state.zoom = Math.min(view.clientWidth / state.width, view.clientHeight / state.height) * 0.98;
  state.left = (view.clientWidth - state.zoom * state.width) / 2;
  state.top = (view.clientHeight - state.zoom * state.height) / 2;
  state.fitted = true;
}
function onScreen([x, y]) { return [state.left + (x + 0.5) * state.zoom, state.top + (y + 0.5) * state.zoom]; }
function cursor(event) {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}
function edge([x, y]) { return [(x - state.left) / state.zoom, (y - state.top) / state.zoom]; } // pixel n is n to n + 1
function pixel(place) {
  const [x, y] = edge(place);
  return [Math.min(Math.max(Math.floor(x), 0), state.width - 1), Math.min(Math.max(Math.floor(y), 0), state.height - 1)];
}
function isInside(place) {
  const [x, y] = edge(place);
  return x >= 0 && y >= 0 && x < state.width && y < state.height;
}
function zoomBy(factor, at) {
  if (!state.image) return;
  const [x, y] = at || [view.clientWidth / 2, view.clientHeight / 2];
  const smallest = Math.min(view.clientWidth / state.width, view.clientHeight / state.height) / 2;
  const zoom = Math.min(Math.max(state.zoom * factor, smallest), 64);
  state.left = x - ((x - state.left) * zoom) / state.zoom;
  state.top = y - ((y - state.top) * zoom) / state.zoom;
  state.zoom = zoom;
  state.fitted = false;
  draw();
}

// --- what is told to the server ---

function remember() {
  state.past.push({ pairs: structuredClone(state.pairs), pending: state.pending, mask: maskText() });
  if (state.past.length > 60) state.past.shift();
}
let maskKept = { canvas: null, text: null };
function maskText() {
  if (!state.mask) return null;
  if (maskKept.canvas !== state.mask || maskKept.text === null) maskKept = { canvas: state.mask, text: state.mask.toDataURL("image/png") };
  return maskKept.text;
}
function told() {
  return { picture: state.picture, points: state.pairs, pending: state.pending, mask: maskText(), revision: state.revision };
}
function tell() {
  state.revision += 1;
  props.value = told();
  if (state.pairs.length) trigger("input"); else state.preview = null;
  showTable();
  draw();
}
let telling = null;
function tellSoon() { // while a point is being dragged
  if (telling) return;
  telling = setTimeout(() => { telling = null; tell(); }, 80);
}

// --- points ---

function marks() {
  return state.pairs.flatMap(([handle, target], index) => {
    const isPin = handle[0] === target[0] && handle[1] === target[1];
    return isPin ? [{ index, end: "both", at: handle }] : [{ index, end: 1, at: target }, { index, end: 0, at: handle }];
  });
}
function markNear(place) {
  let best = null;
  for (const mark of marks()) {
    const [x, y] = onScreen(mark.at);
    const distance = Math.hypot(place[0] - x, place[1] - y);
    if (distance <= REACH && (!best || distance < best.distance)) best = { ...mark, distance };
  }
  return best;
}
function moveMark(mark, to) {
  const pair = state.pairs[mark.index];
  if (!pair) return;
  if (mark.end === "both") { pair[0] = [...to]; pair[1] = [...to]; } else pair[mark.end] = [...to];
}
function lastMark() { // what was placed or moved last; what was a pin may be an arrow by now
  const chosen = state.chosen || {}, index = state.pairs[chosen.index] ? chosen.index : state.pairs.length - 1;
  const [handle, target] = state.pairs[index], isPin = handle[0] === target[0] && handle[1] === target[1];
  const end = index === chosen.index && chosen.end !== "both" ? chosen.end : isPin ? "both" : 1;
  return { index, end, at: end === 0 ? handle : target };
}
function nudge([x, y]) {
  const moved = (at) => [Math.min(Math.max(at[0] + x, 0), state.width - 1), Math.min(Math.max(at[1] + y, 0), state.height - 1)];
  remember();
  if (state.pending) state.pending = moved(state.pending);
  else { const mark = lastMark(); moveMark(mark, moved(mark.at)); }
  tell();
}
function place(at) {
  remember();
  if (state.tool === "pin") {
    state.pairs.push([[...at], [...at]]);
    state.chosen = { index: state.pairs.length - 1, end: "both" };
  } else if (!state.pending) {
    state.pending = at;
  } else {
    state.pairs.push([state.pending, at]);
    state.pending = null;
    state.chosen = { index: state.pairs.length - 1, end: 1 };
  }
  tell();
}
async function undo() {
  const before = state.past.pop();
  if (!before) return;
  state.pairs = before.pairs;
  state.pending = before.pending;
  const isOther = before.mask !== maskText(), images = await loadFor("mask", isOther ? before.mask : null);
  if (!images) return; // another step was taken back meanwhile, or there is another scene
  if (isOther) setMask(images[0], before.mask);
  tell();
}
function removePair(index) {
  remember();
  state.pairs.splice(index, 1);
  state.chosen = null;
  tell();
}
function clearPoints() {
  if (!state.pairs.length && !state.pending) return;
  remember();
  state.pairs = [];
  state.pending = state.chosen = null;
  tell();
}

// --- mask: opaque where the picture may change ---

function emptyMask() {
  const mask = document.createElement("canvas");
  mask.width = state.width;
  mask.height = state.height;
  return mask;
}
function setMask(image, url) {
  state.mask = null;
  if (image) {
    state.mask = emptyMask();
    state.mask.getContext("2d").drawImage(image, 0, 0, state.width, state.height);
  }
  maskKept = { canvas: state.mask, text: url || null };
  shade = null;
}
function paint(from, to) {
  const brush = state.mask.getContext("2d"), radius = Number(find("[data-brush]").value);
  brush.globalCompositeOperation = state.tool === "erase" ? "destination-out" : "source-over";
  brush.strokeStyle = "#fff";
  brush.lineCap = brush.lineJoin = "round";
  brush.lineWidth = 2 * radius;
  brush.beginPath();
  brush.moveTo(...from);
  brush.lineTo(to[0] + 0.001, to[1]);
  brush.stroke();
  maskKept.text = shade = null;
}
function startMask() {
  if (state.mask) return;
  state.mask = emptyMask();
  if (state.tool === "erase") state.mask.getContext("2d").fillRect(0, 0, state.width, state.height);
  maskKept.text = shade = null;
}
function fillBox(from, to) {
  const brush = state.mask.getContext("2d");
  brush.globalCompositeOperation = "source-over";
  brush.fillStyle = "#fff";
  const [left, right] = [from[0], to[0]].sort((a, b) => a - b), [top, bottom] = [from[1], to[1]].sort((a, b) => a - b);
  brush.fillRect(left, top, right - left + 1, bottom - top + 1);
  maskKept.text = shade = null;
}
function invertMask() {
  if (!state.image) return;
  remember();
  if (!state.mask) state.mask = emptyMask();
  const brush = state.mask.getContext("2d");
  brush.globalCompositeOperation = "xor";
  brush.fillStyle = "#fff";
  brush.fillRect(0, 0, state.width, state.height);
  maskKept.text = shade = null;
  tell();
}
function clearMask() {
  if (!state.mask) return;
  remember();
  state.mask = null;
  maskKept = { canvas: null, text: null };
  shade = null;
  tell();
}
let shade = null;
function shadeOfMask() { // dark where the picture must stay
  if (!shade) {
    shade = emptyMask();
    const brush = shade.getContext("2d");
    brush.fillStyle = "rgba(10, 12, 30, 0.55)";
    brush.fillRect(0, 0, state.width, state.height);
    brush.globalCompositeOperation = "destination-out";
    brush.drawImage(state.mask, 0, 0);
  }
  return shade;
}

// --- drawing ---

function shownView() {
  if (state.live) return "live";
  return state.result && root.dataset.view === "compare" ? "compare" : "points";
}
let isDrawing = false;
function draw() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => { isDrawing = false; drawNow(); });
}
function drawNow() {
  const scale = window.devicePixelRatio || 1, wide = view.clientWidth, high = view.clientHeight;
  if (canvas.width !== Math.round(wide * scale) || canvas.height !== Math.round(high * scale)) {
    canvas.width = Math.round(wide * scale);
    canvas.height = Math.round(high * scale);
  }
  ink.setTransform(scale, 0, 0, scale, 0, 0);
  ink.clearRect(0, 0, wide, high);
  if (!state.image) return;
  if (state.fitted) fit();
  const shown = shownView(), isPreview = shown === "points" && fitsPoints(state.preview) && Boolean(state.preview.image);
  const picture = (image) => ink.drawImage(image, state.left, state.top, state.width * state.zoom, state.height * state.zoom);
  ink.imageSmoothingEnabled = state.zoom < 6;
  ink.imageSmoothingQuality = "high";
  if (shown === "live") picture(state.live.image || state.image);
  else if (shown === "compare") {
    picture(state.image);
    const border = state.left + state.divide * state.width * state.zoom;
    ink.save();
    ink.beginPath();
    ink.rect(border, 0, wide - border, high);
    ink.clip();
    picture(state.result);
    ink.restore();
    line([[border, Math.max(state.top, 0)], [border, Math.min(state.top + state.height * state.zoom, high)]], "#fff", 2);
    disc([border, high / 2], 9, "#fff");
  } else {
    picture(isPreview ? state.preview.image : state.image);
    if (state.mask) {
      ink.imageSmoothingEnabled = false;
      picture(shadeOfMask());
    }
    if (isPreview) for (const path of state.preview.paths || []) line(path.map(onScreen), PATH, 2);
    drawPoints();
  }
  if (shown === "live") drawLive();
  badge(shown, isPreview);
  find("[data-zoom]").textContent = state.fitted ? "fit" : `${Math.round(state.zoom * 100)} %`;
  canvas.setAttribute("aria-label", described(shown, isPreview));
}
function fitsPoints(preview) { return preview && preview.revision === state.revision; }
function badge(shown, isPreview) {
  const said = isPreview ? "preview: not the edit" : shown === "points" && fitsPoints(state.preview) ? state.preview.text : "";
  const text = shown === "live" ? state.live.badge : said;
  find(".badge").textContent = text;
  find(".badge").classList.toggle("shown", Boolean(text));
}
function described(shown, isPreview) {
  const count = `${state.pairs.length} ${state.pairs.length === 1 ? "pair" : "pairs"} of points`;
  if (shown === "live") return `The edit while it is made. ${state.live.text}`;
  if (shown === "compare") return "The picture before the edit on the left, after it on the right";
  return `The picture, ${state.width} by ${state.height} pixels, with ${count}${isPreview ? ", bent as a preview" : ""}`;
}
function line(places, colour, width) {
  if (places.length < 2) return;
  for (const [thick, tint] of [[width + 3, "rgba(0, 0, 0, 0.75)"], [width, colour]]) {
    ink.beginPath();
    places.forEach((each, index) => (index ? ink.lineTo(...each) : ink.moveTo(...each)));
    ink.lineWidth = thick;
    ink.lineCap = ink.lineJoin = "round";
    ink.strokeStyle = tint;
    ink.stroke();
  }
}
function arrow(from, to) {
  const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
  line([from, to], "#fff", 2);
  if (length < 18) return;
  const along = [(to[0] - from[0]) / length, (to[1] - from[1]) / length], tip = [to[0] - along[0] * 7, to[1] - along[1] * 7];
  const corner = (side) => [tip[0] - along[0] * 9 - along[1] * side, tip[1] - along[1] * 9 + along[0] * side];
  ink.beginPath();
  [tip, corner(5.5), corner(-5.5)].forEach((each, index) => (index ? ink.lineTo(...each) : ink.moveTo(...each)));
  ink.closePath();
  ink.lineWidth = 2.5;
  ink.strokeStyle = "rgba(0, 0, 0, 0.75)";
  ink.stroke();
  ink.fillStyle = "#fff";
  ink.fill();
}
function disc(at, radius, colour, isSquare) {
  for (const [more, tint] of [[2.5, "rgba(0, 0, 0, 0.8)"], [1.5, "#fff"], [0, colour]]) {
    ink.beginPath();
    if (isSquare) ink.rect(at[0] - radius - more, at[1] - radius - more, 2 * (radius + more), 2 * (radius + more));
    else ink.arc(...at, radius + more, 0, 2 * Math.PI);
    ink.fillStyle = tint;
    ink.fill();
  }
}
function label(text, at) {
  ink.font = "600 12px system-ui, sans-serif";
  ink.lineWidth = 3;
  ink.strokeStyle = "rgba(0, 0, 0, 0.8)";
  ink.strokeText(text, at[0] - 4, at[1] - 11);
  ink.fillStyle = "#fff";
  ink.fillText(text, at[0] - 4, at[1] - 11);
}
function drawPoints() {
  const isPin = ([handle, target]) => handle[0] === target[0] && handle[1] === target[1];
  for (const pair of state.pairs) if (!isPin(pair)) arrow(onScreen(pair[0]), onScreen(pair[1]));
  state.pairs.forEach((pair, index) => {
    if (isPin(pair)) disc(onScreen(pair[0]), 5, PIN, true);
    else {
      disc(onScreen(pair[1]), 4, TARGET);
      disc(onScreen(pair[0]), 5, HANDLE);
    }
    label(String(index + 1), onScreen(pair[0]));
  });
  if (state.pending) {
    const at = onScreen(state.pending);
    if (state.hover && state.tool === "drag") {
      ink.setLineDash([5, 5]);
      line([at, state.hover], "#fff", 1.5);
      ink.setLineDash([]);
    }
    disc(at, 5, HANDLE);
    disc(at, 1.5, "#fff");
  }
  if (state.box) {
    const [a, b] = state.box.map(onScreen), half = state.zoom / 2;
    ink.strokeStyle = PATH;
    ink.lineWidth = 2;
    ink.setLineDash([6, 4]);
    ink.strokeRect(Math.min(a[0], b[0]) - half, Math.min(a[1], b[1]) - half, Math.abs(a[0] - b[0]) + 2 * half, Math.abs(a[1] - b[1]) + 2 * half);
    ink.setLineDash([]);
  }
  if (state.hover && (state.tool === "brush" || state.tool === "erase")) {
    ink.beginPath();
    ink.arc(...state.hover, Number(find("[data-brush]").value) * state.zoom, 0, 2 * Math.PI);
    ink.lineWidth = 1.5;
    ink.strokeStyle = "#fff";
    ink.stroke();
  }
}
function drawLive() {
  for (const path of state.live.paths || []) line(path.map(onScreen), PATH, 2);
  const targets = state.live.targets || [], isPin = (path, index) => String(path[0]) === String(targets[index]);
  (state.live.paths || []).forEach((path, index) => {
    if (isPin(path, index)) return disc(onScreen(targets[index]), 5, PIN, true);
    disc(onScreen(targets[index]), 4, TARGET);
    disc(onScreen(path[path.length - 1]), 5, HANDLE);
  });
}

// --- the table of points, in the group beside the picture ---

function showTable() {
  const table = document.querySelector("#points-table tbody");
  if (!table) return;
  if (table.contains(document.activeElement) && state.pairs.length === table.rows.length) {
    state.pairs.forEach((pair, row) => pair.flat().forEach((value, column) => {
      const field = table.rows[row].querySelectorAll("input")[column];
      if (field !== document.activeElement) field.value = value;
    }));
    return;
  }
  table.replaceChildren(...state.pairs.map((pair, index) => {
    const row = document.createElement("tr"), name = document.createElement("th");
    name.textContent = String(index + 1);
    name.scope = "row";
    row.append(name);
    pair.flat().forEach((value, column) => {
      const cell = document.createElement("td"), field = document.createElement("input");
      field.type = "number";
      field.value = value;
      field.min = 0;
      field.max = (column % 2 ? state.height : state.width) - 1;
      field.setAttribute("aria-label", `pair ${index + 1}, ${column < 2 ? "handle" : "target"} ${column % 2 ? "y" : "x"}`);
      field.addEventListener("change", () => {
        const point = state.pairs[index] && state.pairs[index][column < 2 ? 0 : 1], wanted = Math.round(field.valueAsNumber);
        if (!point) return;
        if (Number.isFinite(wanted)) { // else it was emptied
          remember();
          point[column % 2] = Math.min(Math.max(wanted, 0), Number(field.max));
        }
        field.value = point[column % 2];
        if (Number.isFinite(wanted)) tell();
      });
      cell.append(field);
      row.append(cell);
    });
    const cell = document.createElement("td"), remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "×";
    remove.title = `Remove pair ${index + 1}`;
    remove.setAttribute("aria-label", remove.title);
    remove.addEventListener("click", () => removePair(index));
    cell.append(remove);
    row.append(cell);
    return row;
  }));
  table.closest("#points-table").scrollTop = state.pairs.length * 40; // the last one is what was just placed
  document.querySelector("#points-table").classList.toggle("empty", !state.pairs.length);
}

// --- mouse, pen, finger ---

function chooseTool(tool) {
  state.tool = tool;
  for (const each of root.querySelectorAll("[data-tool]")) each.setAttribute("aria-pressed", String(each.dataset.tool === tool));
  root.classList.toggle("painting", tool === "brush" || tool === "erase");
  canvas.style.cursor = tool === "hand" ? "grab" : "crosshair";
  showView("points");
}
function showView(name) {
  root.dataset.view = name === "compare" && state.result ? "compare" : "points";
  for (const each of root.querySelectorAll("[data-view-of]")) each.setAttribute("aria-pressed", String(each.dataset.viewOf === root.dataset.view));
  draw();
}
canvas.addEventListener("pointerdown", (event) => {
  if (!state.image || event.button > 1) return;
  view.focus({ preventScroll: true });
  canvas.setPointerCapture(event.pointerId);
  const at = cursor(event), shown = shownView();
  if (event.button === 1 || state.tool === "hand" || shown === "live") {
    event.preventDefault();
    state.grip = { kind: "hand", at, left: state.left, top: state.top };
  } else if (shown === "compare") {
    state.grip = { kind: "divide" };
    divideAt(at);
  } else if (state.tool === "drag" || state.tool === "pin") {
    const mark = state.pending ? null : markNear(at);
    if (mark) {
      remember();
      state.chosen = mark;
      const [x, y] = onScreen(mark.at);
      const isPulledOut = mark.end === "both" && state.tool === "drag"; // a pin becomes an arrow
      state.grip = { kind: "mark", mark: isPulledOut ? { ...mark, end: 1 } : mark, off: [at[0] - x, at[1] - y], moved: false };
    } else if (isInside(at)) state.grip = { kind: "click", at };
  } else if (isInside(at)) {
    remember();
    startMask();
    if (state.tool === "box") {
      state.box = [pixel(at), pixel(at)];
      state.grip = { kind: "box" };
    } else {
      state.grip = { kind: "paint", last: edge(at) };
      paint(edge(at), edge(at));
    }
  }
  draw();
});
canvas.addEventListener("pointermove", (event) => {
  if (!state.image) return;
  const at = cursor(event), grip = state.grip;
  state.hover = at;
  find("[data-place]").textContent = isInside(at) ? `x ${pixel(at)[0]}, y ${pixel(at)[1]}` : "";
  if (grip && grip.kind === "hand") {
    state.left = grip.left + at[0] - grip.at[0];
    state.top = grip.top + at[1] - grip.at[1];
    state.fitted = false;
  } else if (grip && grip.kind === "divide") divideAt(at);
  else if (grip && grip.kind === "mark") {
    const to = pixel([at[0] - grip.off[0], at[1] - grip.off[1]]);
    grip.moved = grip.moved || to[0] !== grip.mark.at[0] || to[1] !== grip.mark.at[1];
    if (grip.moved) {
      state.chosen = grip.mark;
      moveMark(grip.mark, to);
      tellSoon();
    }
  } else if (grip && grip.kind === "box") state.box[1] = pixel(at);
  else if (grip && grip.kind === "paint") {
    paint(grip.last, edge(at));
    grip.last = edge(at);
  }
  draw();
});
canvas.addEventListener("pointerup", (event) => {
  const grip = state.grip;
  state.grip = null;
  if (!grip) return;
  const at = cursor(event);
  if (grip.kind === "click" && Math.hypot(at[0] - grip.at[0], at[1] - grip.at[1]) < 6) place(pixel(grip.at));
  else if (grip.kind === "click" && state.tool === "drag" && !state.pending) { // drawn in one go
    remember();
    state.pairs.push([pixel(grip.at), pixel(at)]);
    state.chosen = { index: state.pairs.length - 1, end: 1 };
    tell();
  } else if (grip.kind === "mark" && !grip.moved) state.past.pop();
  else if (grip.kind === "mark") tell();
  else if (grip.kind === "box") {
    fillBox(...state.box);
    state.box = null;
    tell();
  } else if (grip.kind === "paint") tell();
  draw();
});
canvas.addEventListener("pointerleave", () => { state.hover = null; find("[data-place]").textContent = ""; draw(); });
canvas.addEventListener("pointercancel", () => { state.grip = state.box = null; draw(); });
view.addEventListener("wheel", (event) => {
  if (!state.image) return;
  event.preventDefault();
  zoomBy(Math.exp(-Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 120) / 480), cursor(event));
}, { passive: false });
function divideAt(at) {
  state.divide = Math.min(Math.max(edge(at)[0] / state.width, 0), 1);
  find("[data-divide]").value = Math.round(state.divide * 1000);
}
find("[data-divide]").addEventListener("input", (event) => { state.divide = event.target.value / 1000; draw(); });

// --- buttons, keys, pictures from outside ---

const acts = {
  invert: invertMask, unmask: clearMask, in: () => zoomBy(1.5), out: () => zoomBy(1 / 1.5), fit: () => { fit(); draw(); },
  undo, "undo-pair": () => { if (state.pending) undo(); else if (state.pairs.length) removePair(state.pairs.length - 1); }, clear: clearPoints,
};
root.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.tool) chooseTool(button.dataset.tool);
  else if (button.dataset.act) acts[button.dataset.act]();
  else if (button.dataset.viewOf) showView(button.dataset.viewOf);
});
function isTyping(target) { return target instanceof Element && Boolean(target.closest("input:not([type=range]), textarea, select, [contenteditable=true]")); }
function press(id) {
  const button = document.querySelector(`#${id}`);
  if (button && !button.disabled) button.click();
}
function onKey(event) {
  if (!root.isConnected) return document.removeEventListener("keydown", onKey);
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
  const key = event.key.toLowerCase(), step = { arrowleft: [-1, 0], arrowright: [1, 0], arrowup: [0, -1], arrowdown: [0, 1] }[key];
  if (key === "z") undo();
  else if (key === "r") press("run");
  else if (key === "p") chooseTool(state.tool === "pin" ? "drag" : "pin");
  else if (key === "escape") {
    if (state.live) press("cancel");
    else if (state.pending) undo();
  } else if (key === "+" || key === "=") zoomBy(1.5);
  else if (key === "-") zoomBy(1 / 1.5);
  else if (key === "0") acts.fit();
  else if (step && document.activeElement === view && (state.pending || state.pairs.length)) {
    event.preventDefault();
    nudge(step);
  }
}
document.addEventListener("keydown", onKey);
async function take(file) { // by the button's own input, so that one way of uploading serves all
  const input = document.querySelector("#upload").parentElement.querySelector("input[type=file]");
  if (!file || !input) return;
  const parcel = new DataTransfer();
  parcel.items.add(file);
  input.files = parcel.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}
// All over the page: what is dropped beside the picture would be opened by the browser, in place of the app.
document.addEventListener("dragover", (event) => { event.preventDefault(); view.classList.add("dropping"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) view.classList.remove("dropping"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  view.classList.remove("dropping");
  take(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  if (isTyping(event.target)) return;
  const file = [...(event.clipboardData ? event.clipboardData.files : [])].find((each) => each.type.startsWith("image/"));
  if (file) take(file);
});

function askToStay(event) { // a reload forgets all, and the browser asks first; server.py sees to it that we hear of it first
  if (!state.pairs.length && !state.mask && !state.result) return;
  event.preventDefault();
  event.stopImmediatePropagation(); // or gradio hangs up, though the answer may be to stay
}

function sayHere() { // a connection that broke looks like a tab that was closed, until the page says that it is open
  if (state.picture) server.here(state.picture).catch(() => {}); // once the network is back, it is said again
}
setInterval(sayHere, 20000);

// --- what the server says ---

async function onScene(scene) {
  if (!scene || !scene.url) return;
  const images = await loadFor("scene", scene.url, scene.result, scene.mask);
  if (!images || !images[0]) return;
  const [image, result, mask] = images;
  const isOther = state.picture !== scene.picture;
  Object.assign(state, { picture: scene.picture, image, result, width: scene.width, height: scene.height, live: null });
  root.classList.add("has-picture");
  root.classList.toggle("has-result", Boolean(result));
  root.classList.remove("running");
  if (isOther || scene.mask !== undefined) newest.mask = {}; // a step that is being taken back is too late
  if (!isOther && (scene.points || scene.mask !== undefined)) remember();
  if (isOther) {
    Object.assign(state, { pairs: [], pending: null, past: [], chosen: null, preview: null, fitted: true });
    find("[data-brush]").max = Math.max(16, Math.round(Math.min(image.naturalWidth, image.naturalHeight) / 4));
    find("[data-brush]").value = Math.max(4, Math.round(Math.min(scene.width, scene.height) / 16));
    setMask(null, null);
  }
  if (scene.points) {
    state.pairs = structuredClone(scene.points);
    state.pending = state.chosen = null;
  }
  if (scene.mask !== undefined) setMask(mask, scene.mask);
  showView(result ? "compare" : "points");
  tell();
}
async function onPreview(preview) {
  const images = await loadFor("preview", preview && preview.url);
  if (!images || (preview && !fitsPoints(preview))) return;
  state.preview = preview ? { ...preview, image: images[0] } : null;
  draw();
}
async function onLive(live) {
  const images = await loadFor("live", live && live.url), before = state.live || {};
  if (!images) return;
  const paths = live && live.paths.length ? live.paths : before.paths; // what tells of neither leaves both
  state.live = live ? { ...live, image: images[0] || before.image, paths } : null;
  root.classList.toggle("running", Boolean(live));
  find(".track div").style.width = live ? `${Math.round(100 * (live.share || 0))}%` : "0";
  draw();
}
function onParcel(files) { // to the browser's downloads
  for (const { url, name } of files || []) {
    const link = document.createElement("a");
    link.href = url;
    link.download = name;
    document.body.append(link);
    link.click();
    link.remove();
  }
}
watch("scene", () => onScene(props.scene));
watch("preview", () => onPreview(props.preview));
watch("live", () => onLive(props.live));
watch("parcel", () => onParcel(props.parcel));

window.dragStage = { state, onScreen, acts, told, sayHere, askToStay }; // for tests, and for the buttons of the group beside
new ResizeObserver(draw).observe(view);
chooseTool("drag");
showTable();
if (props.scene) onScene(props.scene);
