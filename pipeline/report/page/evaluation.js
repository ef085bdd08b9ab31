"use strict";
const byId = (id) => document.getElementById(id);
const cards = [...document.querySelectorAll(".card")].map((element) => ({
  element, ...element.dataset, place: Number(element.dataset.number), numbers: JSON.parse(element.dataset.numbers),
}));
const controls = ["sort", "before", "after", "set", "class", "size"].map(byId);
const [sort, before, after] = controls;
let shown = cards;
let open = 0;

const points = (value) => `${value < 0 ? "" : "+"}${(100 * value).toFixed(1)} points of overlap`;

function change(card) {
  const [from, to] = [before, after].map((control) => card.numbers[control.value].iou);
  return from === null || to === null ? null : to - from;
}

// Larger comes first; what cannot be judged so comes last.
const orders = {
  changed: (card) => change(card) === null ? -1 : Math.abs(change(card)),
  failed: (card) => card.numbers[after.value].iou === null ? -1 : 1 - card.numbers[after.value].iou,
  hurt: (card) => change(card) === null ? -2 : -change(card),
  wrong: (card) => Number(!card.numbers[after.value].right) + Math.abs(card.numbers[after.value].probability - 0.5),
  order: () => 0,
};

function arrange() {
  const wanted = { set: byId("set").value, class: byId("class").value, size: byId("size").value };
  shown = cards.filter((card) => Object.entries(wanted).every(([key, value]) => !value || card[key] === value));
  shown.sort((a, b) => orders[sort.value](b) - orders[sort.value](a) || a.place - b.place);
  for (const card of cards) {
    const moved = change(card);
    const text = card.element.querySelector(".change");
    if (text) text.textContent = moved === null ? "" : `${before.value} to ${after.value}: ${points(moved)}`;
  }
  byId("cards").replaceChildren(...shown.map((card) => card.element));
  byId("count").textContent = `${shown.length} of ${cards.length} shown`;
}

function numbersOf(card, name) {
  const { iou, probability, right } = card.numbers[name];
  const overlap = iou === null ? "" : `${Math.round(100 * iou)} % overlap, `;
  return `${name}: ${overlap}p = ${probability.toFixed(2)}, ${right ? "right" : "wrong"}`;
}

// A copy, since a browser may leave a picture that is far down the page undecoded.
function pictureOf(card, kind, name) {
  const figures = [...card.element.querySelectorAll(`[data-kind=${kind}]`)];
  const { src, alt } = figures.find((figure) => figure.dataset.model === name).querySelector("img");
  return Object.assign(new Image(), { src, alt });
}

async function draw() {
  const card = shown[open];
  const kind = byId("kind").value;
  const names = [byId("left").value, byId("right").value];
  const [left, right] = names.map((name) => pictureOf(card, kind, name));
  await Promise.all([left, right].map((image) => image.decode()));
  if (card !== shown[open]) return;
  const canvas = byId("canvas");
  [canvas.width, canvas.height] = [left.naturalWidth, left.naturalHeight];
  const edge = Math.round(canvas.width * byId("slider").value / 100);
  const context = canvas.getContext("2d");
  context.drawImage(right, 0, 0);
  if (edge > 0) context.drawImage(left, 0, 0, edge, canvas.height, 0, 0, edge, canvas.height);
  context.fillStyle = "#ffffff";
  context.fillRect(edge - 1, 0, 2, canvas.height);
  canvas.setAttribute("aria-label", `${left.alt}, left of the slider; ${right.alt}, right of it`);
  byId("heading").textContent = card.element.querySelector("h3 > span").textContent +
    ` in ${card.element.querySelector("h3 > .muted").textContent} (${open + 1} of ${shown.length})`;
  byId("left-numbers").textContent = numbersOf(card, names[0]);
  byId("right-numbers").textContent = numbersOf(card, names[1]);
}

function show(place) {
  open = (place + shown.length) % shown.length;
  if (!byId("dialog").open) {
    byId("left").value = before.value;
    byId("right").value = after.value;
    byId("dialog").showModal();
    byId("slider").focus();
  }
  draw();
}

function start() {
  for (const control of controls) control.addEventListener("change", arrange);
  for (const id of ["left", "right", "kind", "slider"]) byId(id).addEventListener("input", draw);
  byId("previous").addEventListener("click", () => show(open - 1));
  byId("next").addEventListener("click", () => show(open + 1));
  byId("close").addEventListener("click", () => byId("dialog").close());
  byId("dialog").addEventListener("close", () => shown[open].element.querySelector(".open").focus());
  byId("dialog").addEventListener("keydown", (event) => {
    if (event.target.tagName === "SELECT") return;
    if (event.key === "n" || event.key === "N") show(open + 1);
    if (event.key === "p" || event.key === "P") show(open - 1);
  });
  for (const card of cards) {
    const button = card.element.querySelector(".open");
    button.hidden = false;
    button.addEventListener("click", () => show(shown.indexOf(card)));
  }
  byId("controls").hidden = cards.length === 0;
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  arrange();
}

start();
