/** A bar chart over days of UTC, which are the ledger's (uPlot), in the colours of the theme. The table beside it says the same in words. */

import { h } from "./dom.js";

const HEIGHT = 220;
const DAY_S = 86_400;
const DAYS = [1, 2, 7, 14, 28];

/** A chart of `points`, `{at: seconds, value}`; drawn anew where the room or the theme changes. `app.theme` tells of the latter. */
export function dayChart(app, points, label, shown) {
  const box = h("div", { class: "chart", role: "img", "aria-label": label });
  let plot = null;
  const draw = () => {
    plot?.destroy();
    plot = new window.uPlot(options(box, shown), [points.map((each) => each.at), points.map((each) => each.value)], box);
  };
  const resized = new ResizeObserver(() => {
    if (!box.clientWidth) return;
    if (plot) plot.setSize({ width: box.clientWidth, height: HEIGHT });
    else draw();
  });
  resized.observe(box);
  const repaint = () => plot && draw();
  app.theme.addEventListener("changed", repaint);
  return {
    node: box,
    leave: () => {
      resized.disconnect();
      app.theme.removeEventListener("changed", repaint);
      plot?.destroy();
    },
  };
}

function options(box, shown) {
  const style = getComputedStyle(box);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
  return {
    width: box.clientWidth,
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false } },
    scales: {
      x: { time: false, range: (_plot, first, last) => [first - DAY_S / 2, last + DAY_S / 2] },
      y: { range: (_plot, _least, most) => [0, most > 0 ? most * 1.1 : 1] },
    },
    axes: [
      { ...axis, grid: { show: false }, space: 70, incrs: DAYS.map((days) => days * DAY_S), values: (_plot, ticks) => ticks.map(day) },
      { ...axis, size: 64, values: (_plot, ticks) => ticks.map(shown) },
    ],
    series: [
      {},
      {
        fill: colour("--water"),
        stroke: colour("--water"),
        width: 0,
        paths: window.uPlot.paths.bars({ size: [0.7, 40], radius: 0.15 }),
        points: { show: false },
      },
    ],
  };
}

function day(seconds) {
  return new Date(seconds * 1_000).toLocaleDateString(undefined, { month: "short", day: "numeric", timeZone: "UTC" });
}
