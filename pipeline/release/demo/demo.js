"use strict";
const byId = (id) => document.getElementById(id);
const { answers: address, content, ramp } = document.body.dataset;
const colours = JSON.parse(ramp);
const sections = [...document.querySelectorAll(".answer")];
let current = null;
let asked = 0;

const say = (text) => { byId("message").textContent = text; };

async function decoded(type, base64) {
  const image = new Image();
  image.src = `data:image/${type};base64,${base64}`;
  await image.decode();
  return image;
}

async function ask(file) {
  const turn = ++asked;
  say("The networks are looking at it.");
  try {
    const response = await fetch(address, { method: "POST", headers: { "Content-Type": content }, body: file });
    const answer = await response.json();
    if (turn !== asked) return;
    if (!response.ok) throw new Error(answer.message);
    await take(answer);
    if (turn === asked) say("");
  } catch (error) {
    if (turn === asked) say(`No answer: ${error.message}`);
  }
}

async function take(answer) {
  const image = await decoded("jpeg", answer.image);
  const models = {};
  for (const [name, of] of Object.entries(answer.models)) {
    const maps = {};
    for (const [label, map] of Object.entries(of.attention)) maps[label] = await decoded("png", map);
    models[name] = { ...of, attention: maps, segmentation: await decoded("png", of.segmentation) };
  }
  current = { image, models };
  offerClasses();
  for (const section of sections) list(section, current.models[section.dataset.model]);
  byId("controls").hidden = false;
  draw();
}

// The classes that any network finds most probable come first.
function offerClasses() {
  const best = new Map();
  for (const { class_probs: probs, attention } of Object.values(current.models)) {
    for (const label of Object.keys(attention)) best.set(label, Math.max(best.get(label) ?? 0, probs[label]));
  }
  const labels = [...best].sort((a, b) => b[1] - a[1]).map(([label]) => label);
  const chosen = byId("class").value;
  byId("class").replaceChildren(...labels.map((label) => new Option(label)));
  if (labels.includes(chosen) && best.get(chosen) >= 0.5) byId("class").value = chosen;
}

function element(tag, text, settings = {}) {
  return Object.assign(document.createElement(tag), { textContent: text }, settings);
}

function list(section, { class_probs: probs, seconds }) {
  section.querySelector(".seconds").textContent = `${Math.round(1000 * seconds)} ms`;
  const rows = Object.entries(probs).sort((a, b) => b[1] - a[1]).slice(0, 8).map(([label, probability]) => {
    const row = document.createElement("li");
    const name = element("span", label);
    if (probability >= 0.5) name.className = "better";
    row.append(name, element("meter", "", { value: probability, title: `${label}: ${probability.toFixed(2)}` }),
      element("span", probability.toFixed(2)));
    return row;
  });
  section.querySelector("ol").replaceChildren(...rows);
}

// The picture's pixels at one size, whatever the size of what is drawn.
function pixels(source, width, height, smooth) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = smooth;
  context.drawImage(source, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

function mix(base, colourOf, shareOf) {
  const { data } = base;
  for (let place = 0; place < data.length; place += 4) {
    const colour = colourOf(place);
    const share = shareOf(place);
    for (let channel = 0; channel < 3; channel += 1) {
      data[place + channel] = data[place + channel] * (1 - share) + colour[channel] * share;
    }
  }
  return base;
}

function draw() {
  if (!current) return;
  const view = byId("view").value;
  const label = byId("class").value;
  const strength = byId("strength").value / 100;
  const { naturalWidth: width, naturalHeight: height } = current.image;
  for (const section of sections) {
    const { attention, segmentation, classes } = current.models[section.dataset.model];
    const canvas = section.querySelector("canvas");
    const base = pixels(current.image, width, height, true);
    let says = "The picture";
    if (view === "attention" && attention[label]) {
      const map = pixels(attention[label], width, height, true).data;
      mix(base, (place) => colours[map[place]], (place) => strength * (0.35 + 0.65 * map[place] / 255));
      says = `Attention of ${section.dataset.model} at ${canvas.dataset.layer} for ${label}`;
    } else if (view === "attention") {
      says = `${section.dataset.model} does not know the class ${label}, or finds it unlikely`;
    } else if (view === "segmentation") {
      const mask = pixels(segmentation, width, height, false).data;
      const background = (place) => mask[place] + mask[place + 1] + mask[place + 2] === 0;
      mix(base, (place) => mask.subarray(place, place + 3), (place) => strength * (background(place) ? 0.5 : 1));
      says = `Pixels that ${section.dataset.model} marks: ${Object.keys(classes).join(", ") || "none"}`;
    }
    [canvas.width, canvas.height] = [width, height];
    canvas.getContext("2d").putImageData(base, 0, 0);
    canvas.setAttribute("aria-label", says);
    section.querySelector(".legend").replaceChildren(...(view === "segmentation" ? legend(classes) : [says]));
  }
  byId("class").disabled = view !== "attention";
  byId("strength").disabled = view === "image";
}

function legend(classes) {
  const space = "http://www.w3.org/2000/svg";
  const entries = Object.entries(classes).map(([label, colour]) => {
    const entry = document.createElement("span");
    const swatch = document.createElementNS(space, "svg");
    swatch.setAttribute("viewBox", "0 0 1 1");
    swatch.setAttribute("class", "swatch");
    const square = document.createElementNS(space, "rect");
    for (const [key, value] of Object.entries({ width: 1, height: 1, fill: colour })) square.setAttribute(key, value);
    swatch.append(square);
    entry.append(swatch, ` ${label}`);
    return entry;
  });
  return entries.length ? entries : ["no class was marked"];
}

function start() {
  for (const id of ["view", "class", "strength"]) byId(id).addEventListener("input", draw);
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("file").addEventListener("change", (event) => {
    if (event.target.files[0]) ask(event.target.files[0]);
  });
  byId("example")?.addEventListener("change", async (event) => {
    if (event.target.value === "") return;
    const response = await fetch(`/examples/${event.target.value}`);
    if (response.ok) ask(await response.blob().then((blob) => blob.arrayBuffer()));
    else say(`No answer: ${await response.text()}`);
  });
  const drop = byId("drop");
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name !== "drop") return;
      if (event.dataTransfer.files[0]) ask(event.dataTransfer.files[0]);
      else say("No answer: that was no file; drop a JPEG or PNG.");
    });
  }
}

start();
