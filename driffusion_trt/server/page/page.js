// The page: one request in the mode of the form, then the same in mode sequential, side by side.

import {draw} from "./chart.js";
import {events, reason} from "./stream.js";

const by = id => document.getElementById(id);
const FIELDS = {prompt: String, negative_prompt: String, steps: Number, guidance_scale: Number, size: String,
  mode: String, deadline_ms: Number};
let going = null;

/** The fields of the form that are not empty. */
function given() {
  const found = {};
  for (const [name, kind] of Object.entries(FIELDS)) {
    const value = by(name).value.trim();
    if (value !== "") found[name] = kind(value);
  }
  if (!by("quality").disabled) found.quality = by("quality").value;
  const seed = by("seed").value.trim();
  found.seed = seed === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : Number(seed);
  return found;
}

/** A panel with nothing in it. */
function clear(panel, text) {
  panel.querySelector("img").hidden = panel.querySelector("progress").hidden = true;
  panel.querySelector(".state").textContent = text;
  panel.querySelector(".times").replaceChildren();
  panel.querySelector(".chart").replaceChildren();
}

function show(panel, event, whole) {
  const image = panel.querySelector("img");
  image.src = `data:image/${event.output_format};base64,${event.b64_json}`;
  image.classList.toggle("preview", !whole);
  image.classList.toggle("whole", whole);
  image.classList.toggle("large", whole && Number(event.size.split("x")[0]) >= 256);
  image.hidden = false;
}

/** Makes one picture in a panel; returns its details, with `ms` from the request to the picture. */
async function make(panel, fields) {
  const state = panel.querySelector(".state"), bar = panel.querySelector("progress"), start = performance.now();
  clear(panel, "waiting for lanes …");
  let first = null;
  for await (const event of events(fields, by("key").value, going.signal)) {
    const ms = performance.now() - start;
    first ??= ms;
    if (event.type.endsWith(".partial_image")) {
      show(panel, event, false);
      bar.hidden = false;
      bar.value = event.round / Math.max(event.round, event.rounds);
      state.textContent = `round ${event.round} of ${Math.max(event.round, event.rounds)}, ${Math.round(ms)} ms`;
    } else if (event.type.endsWith(".completed")) {
      show(panel, event, true);
      bar.hidden = true;
      const details = {...event.details, ms, first};
      state.textContent = `mode ${details.mode}${split(details)}, ${details.sequential_calls} rounds for ${details.steps} steps, `
        + `seed ${event.seed}`;
      list(panel.querySelector(".times"), details);
      return details;
    }
  }
  throw new Error("the connection ended before the picture was there");
}

/** That guidance was split over two lanes, where it was. */
function split(details) {
  return details.split_guidance ? " with split guidance" : "";
}

function list(place, details) {
  const made = details.encode_ms + details.denoise_ms + details.decode_ms;
  const rows = {
    "made in": `${made.toFixed(0)} ms (text ${details.encode_ms.toFixed(0)}, rounds `
      + `${details.denoise_ms.toFixed(0)}, decoder ${details.decode_ms.toFixed(0)})`,
    "waited": `${details.queue_ms.toFixed(0)} ms`,
    "first preview": `${details.first.toFixed(0)} ms`,
    "here after": `${details.ms.toFixed(0)} ms`,
    "lanes": `${details.lanes}`,
  };
  if (details.drift) rows.drift = details.drift[0].toPrecision(2);
  const notes = details.warnings.map(warning => ["note", warning]);
  place.replaceChildren(...[...Object.entries(rows), ...notes].flatMap(([name, text]) => {
    const term = document.createElement("dt"), value = document.createElement("dd");
    term.textContent = name;
    value.textContent = text;
    return [term, value];
  }));
}

/** Charts of both panels, on one axis. */
function charts(found) {
  const ends = Object.values(found).flatMap(details => details.spans.map(span => span.end_ms));
  const most = Math.max(...ends, 1);
  for (const [id, details] of Object.entries(found)) draw(by(id).querySelector(".chart"), details.spans, most);
}

/** Mean squared difference of the two pictures as a peak signal-to-noise ratio in dB, or null where they are equal. */
async function psnr() {
  const [one, other] = await Promise.all(["parallel", "sequential"].map(async id => {
    const image = by(id).querySelector("img");
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const pen = canvas.getContext("2d");
    pen.drawImage(image, 0, 0);
    return pen.getImageData(0, 0, canvas.width, canvas.height).data;
  }));
  let sum = 0;
  for (let k = 0; k < one.length; k++) sum += (one[k] - other[k]) ** 2; // alpha is the same
  return sum ? 10 * Math.log10(255 ** 2 / (sum / (one.length * 3 / 4))) : null;
}

async function verdict({parallel, sequential}, asked) {
  const near = await psnr();
  const alike = near === null ? "the same picture" : `${near.toFixed(1)} dB from the sequential picture`;
  if (parallel.mode === "sequential" && !parallel.split_guidance) {
    by("verdict").textContent = asked === "auto"
      ? "Mode auto found no plan that is faster on these devices with this quality, so both are sequential."
      : "Both are sequential.";
    return;
  }
  by("verdict").textContent = `${parallel.sequential_calls} rounds${split(parallel)} in `
    + `${parallel.denoise_ms.toFixed(0)} ms, for ${sequential.sequential_calls} in `
    + `${sequential.denoise_ms.toFixed(0)} ms: `
    + `${(sequential.denoise_ms / parallel.denoise_ms).toFixed(2)} times as fast, ${alike}.`;
}

async function run(submitted) {
  submitted.preventDefault();
  going?.abort();
  going = new AbortController();
  const mine = going, found = {};
  by("message").textContent = by("verdict").textContent = "";
  for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  by("make").disabled = true;
  by("stop").disabled = false;
  const fields = given(), {quality, deadline_ms, ...plain} = fields;
  by("parallel").querySelector("h2").textContent = fields.mode === "auto" ? "auto" : `mode ${fields.mode}`;
  clear(by("parallel"), "…");
  clear(by("sequential"), by("both").checked ? "afterwards" : "not asked for");
  try {
    // One after the other, so that neither takes lanes from the other.
    found.parallel = await make(by("parallel"), fields);
    charts(found);
    if (by("both").checked) {
      found.sequential = await make(by("sequential"), {...plain, mode: "sequential"});
      charts(found);
      await verdict(found, fields.mode);
    }
  } catch (error) {
    by("message").textContent = mine.signal.aborted ? "stopped" : error.message;
    if (error.param) by(error.param)?.setAttribute("aria-invalid", "true");
    for (const id of ["parallel", "sequential"]) if (!found[id]) clear(by(id), "–");
  } finally {
    if (mine === going) {
      by("make").disabled = false;
      by("stop").disabled = true;
    }
  }
}

async function about() {
  const headers = by("key").value ? {Authorization: `Bearer ${by("key").value}`} : {};
  try {
    const answer = await fetch("v1/models", {headers});
    if (!answer.ok) throw await reason(answer);
    const [model] = (await answer.json()).data;
    by("about").textContent = `${model.id} on ${model.devices}; pictures of ${model.size}, or other multiples of `
      + `${model.size_multiple} pixels`;
    by("steps").placeholder = model.steps;
    by("guidance_scale").placeholder = model.guidance_scale;
  } catch (error) {
    by("about").textContent = error.message;
  }
}

by("form").addEventListener("submit", run);
by("stop").addEventListener("click", () => going?.abort());
by("key").addEventListener("change", about);
/** With a deadline the quality is what there is time for. */
function qualified() {
  by("quality").disabled = by("mode").value !== "auto" || by("deadline_ms").value.trim() !== "";
}

for (const [id, kind] of [["mode", "change"], ["deadline_ms", "input"]]) by(id).addEventListener(kind, qualified);
qualified();
about();
