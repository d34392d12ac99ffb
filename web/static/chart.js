// Curves of a job: training loss raw and smoothed, validation loss, speed, memory, learning rate.
"use strict";

const ink = (name) => {
  const probe = document.createElement("i");
  probe.className = `ink-${name}`;
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
};
const faint = (colour) => `color-mix(in srgb, ${colour} 50%, transparent)`;
const digits = (value) =>
  value == null ? "–" : Math.abs(value) < 0.001 && value ? value.toExponential(2) : value.toPrecision(4);
const bytes = (value) => {
  if (value == null) return "–";
  const [unit, name] = value < 2 ** 30 ? [2 ** 20, "MiB"] : [2 ** 30, "GiB"];
  return `${(value / unit).toPrecision(3)} ${name}`;
};

// Exponential moving average, corrected for its start, as TensorBoard's.
const smooth = (values, weight = 0.6) => {
  let mean = 0, total = 0;
  return values.map((value) => {
    if (value == null) return null;
    mean = mean * weight + (1 - weight) * value;
    total = total * weight + (1 - weight);
    return mean / total;
  });
};

const points = new Map(); // step → point: a resumed attempt writes its steps again
const take = (list) => list.forEach((p) => points.set(p.step, { ...points.get(p.step), ...p }));
const column = (rows, key) => rows.map((p) => p[key] ?? null);

const CHARTS = {
  loss: {
    height: 260,
    data: (rows) => {
      const train = column(rows, "train_loss");
      return [train, smooth(train), column(rows, "val_loss")];
    },
    series: () => [
      { label: "train", stroke: faint(ink("leaf")), width: 1 },
      { label: "smoothed", stroke: ink("leaf"), width: 2 },
      { label: "validation", stroke: ink("straw"), width: 2, points: { show: true, size: 6, fill: ink("straw") } },
    ],
  },
  speed: {
    data: (rows) => [column(rows, "tokens_per_second")],
    series: () => [{ label: "tokens/s", stroke: ink("leaf"), width: 1.5 }],
  },
  memory: {
    data: (rows) => [column(rows, "peak_memory_bytes")],
    series: () => [{ label: "peak memory", stroke: ink("leaf"), width: 1.5, value: (_, v) => bytes(v) }],
    axis: (_, values) => values.map(bytes),
    wide: 66,
  },
  rate: {
    data: (rows) => [column(rows, "learning_rate")],
    series: () => [{ label: "learning rate", stroke: ink("leaf"), width: 1.5 }],
    axis: (_, values) => values.map((v) => (v ? v.toExponential(0) : "0")),
  },
};

// A line of one point is no line: the point itself is shown.
const alone = (plot, series) => plot.data[series].filter((value) => value != null).length < 2;

const draw = (box, spec) => {
  const rows = [...points.values()].sort((a, b) => a.step - b.step);
  const data = [rows.map((p) => p.step), ...spec.data(rows)];
  const axis = { stroke: ink("muted"), grid: { stroke: ink("line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  const plot = new uPlot(
    {
      width: box.clientWidth,
      height: spec.height ?? 150,
      cursor: { y: false, sync: { key: "step" }, points: { size: 7 } },
      scales: { x: { time: false } },
      axes: [
        { ...axis, space: 70, size: 26 },
        { ...axis, size: spec.wide ?? 52, space: 34, ...(spec.axis && { values: spec.axis }) },
      ],
      series: [
        { label: "step" },
        ...spec.series().map((s) => ({ spanGaps: true, value: (_, v) => digits(v), points: { show: alone, size: 6 }, ...s })),
      ],
    },
    data,
    box,
  );
  return { plot, update: () => {
    const fresh = [...points.values()].sort((a, b) => a.step - b.step);
    plot.setData([fresh.map((p) => p.step), ...spec.data(fresh)]);
  } };
};

let drawn = [];
const drawAll = () => {
  drawn.forEach(({ plot }) => plot.destroy());
  drawn = [...document.querySelectorAll("[data-chart]")].map((box) => {
    box.replaceChildren();
    return { box, ...draw(box, CHARTS[box.dataset.chart]) };
  });
};

const seed = document.getElementById("points");
if (seed) {
  take(JSON.parse(seed.textContent));
  drawAll();
  document.addEventListener("theme", drawAll);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  new ResizeObserver(() => drawn.forEach(({ box, plot }) =>
    box.clientWidth !== plot.width && plot.setSize({ width: box.clientWidth, height: plot.height })),
  ).observe(document.querySelector("main"));
  document.getElementById("live")?.addEventListener("points", ({ detail }) => {
    take(JSON.parse(detail.data));
    document.getElementById("curves").hidden = false;
    drawn.forEach(({ update }) => update());
  });
}
