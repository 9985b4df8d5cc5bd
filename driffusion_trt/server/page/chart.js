// The lanes over time: a row for each lane, a box for each prediction.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 400, LEFT = 44, ROW = 16, FOOT = 16;

function shape(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent?.append(made);
  return made;
}

function word(text, x, y, anchor, parent) {
  shape("text", {x, y, "text-anchor": anchor}, parent).textContent = text;
}

/** Draws `spans` ({lane, start_ms, end_ms, round}) into a place; the axis ends at `most_ms`. */
export function draw(place, spans, most_ms) {
  const lanes = [...new Set(spans.map(span => span.lane))].sort(
    (one, other) => one.localeCompare(other, "en", {numeric: true}));
  const height = lanes.length * ROW + FOOT;
  const svg = shape("svg", {viewBox: `0 0 ${WIDTH} ${height}`, role: "img"});
  shape("title", {}, svg).textContent = `${lanes.length} lanes, ${spans.length} predictions`;
  const x = ms => LEFT + (WIDTH - LEFT - 1) * ms / most_ms;
  lanes.forEach((lane, row) => {
    const y = row * ROW;
    word(lane, LEFT - 6, y + 11, "end", svg);
    shape("rect", {class: "ground", x: LEFT, y: y + 2, width: WIDTH - LEFT, height: ROW - 4}, svg);
    for (const span of spans.filter(span => span.lane === lane)) {
      const width = Math.max(0.8, x(span.end_ms) - x(span.start_ms));
      const box = shape("rect", {x: x(span.start_ms), y: y + 2, width, height: ROW - 4}, svg);
      shape("title", {}, box).textContent = `round ${span.round}: ${(span.end_ms - span.start_ms).toFixed(1)} ms`;
    }
  });
  const foot = lanes.length * ROW;
  shape("line", {x1: LEFT, x2: WIDTH, y1: foot + 1, y2: foot + 1}, svg);
  word("0", LEFT, foot + 13, "start", svg);
  word(`${Math.round(most_ms)} ms`, WIDTH, foot + 13, "end", svg);
  place.replaceChildren(svg);
}
