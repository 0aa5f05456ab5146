"use strict";
// Draws a session's curves with uPlot, and asks a server for what is new if there is one.
(() => {
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;
  const HUES = 7;
  const wide = { lossHeight: 360, rateHeight: 150 };
  const view = { tokens: false, smooth: 0, range: null, hidden: new Set(), whole: false };
  let series = JSON.parse(byId("series").textContent);
  let plots = [];
  let drawn = [];

  // Elements are made one by one, and their texts are texts: nothing is read as HTML here.
  function make(name, attributes, ...inside) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key in element && typeof value !== "string") element[key] = value;
      else element.setAttribute(key, value);
    }
    element.append(...inside);
    return element;
  }

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  function hues() {
    const roots = [...new Set(series.curves.map((curve) => curve.root))];
    let branch = 0;
    return series.curves.map((curve) => {
      if (roots.length > 1) return `--c${roots.indexOf(curve.root) % HUES}`;
      return curve.branches ? `--c${branch++ % HUES}` : "--trunk";
    });
  }

  function places(curve) {
    const tokens = curve.tokens;
    if (!view.tokens || tokens === null) return curve.iterations;
    return Array.isArray(tokens) ? tokens : curve.iterations.map((at) => at * tokens);
  }

  // The mean of the points around each, fewer at both ends: it does not lag behind.
  function smoothed(values, points) {
    if (points < 2) return values;
    const sums = [0];
    const counts = [0];
    for (const value of values) {
      sums.push(sums[sums.length - 1] + (value === null ? 0 : value));
      counts.push(counts[counts.length - 1] + (value === null ? 0 : 1));
    }
    return values.map((value, i) => {
      const half = Math.min(points >> 1, i, values.length - 1 - i);
      const count = counts[i + half + 1] - counts[i - half];
      return value === null || count === 0 ? value : (sums[i + half + 1] - sums[i - half]) / count;
    });
  }

  function settled(values) {
    const known = values.filter((value) => value !== null && value !== undefined && isFinite(value));
    if (known.length === 0) return null;
    known.sort((a, b) => a - b);
    const top = view.whole ? known[known.length - 1] : known[Math.floor(0.97 * (known.length - 1))];
    const margin = 0.06 * (top - known[0]) || 0.1;
    return [known[0] - margin, top + margin];
  }

  // The first iterations would squeeze everything of interest into the lowest tenth.
  function lossRange(plot) {
    const { min, max } = plot.scales.x; // null at first
    const [from, to] = [min ?? -Infinity, max ?? Infinity];
    const values = [];
    plot.series.forEach((line, index) => {
      if (index === 0 || !line.show) return;
      plot.data[index].forEach((value, i) => {
        const at = plot.data[0][i];
        if (value !== null && value !== undefined && at >= from && at <= to) values.push(value);
      });
    });
    return settled(values) || [0, 1];
  }

  function short(value) {
    if (value === null || value === undefined) return "";
    const size = Math.abs(value);
    for (const [suffix, factor] of [["T", 1e12], ["B", 1e9], ["M", 1e6], ["K", 1e4]])
      if (size >= factor) return `${+(value / (suffix === "K" ? 1e3 : factor)).toPrecision(4)}${suffix}`;
    return `${+value.toPrecision(5)}`;
  }

  function axis(label, size, values) {
    const line = { stroke: colour("--line"), width: 1 };
    const font = "12px system-ui, sans-serif";
    return { label, size, values, stroke: colour("--dim"), grid: line, ticks: line, font, labelFont: font, labelSize: label ? 22 : 0 };
  }

  function options(kind, lines, width, height) {
    const unit = view.tokens ? "tokens" : "iteration";
    const isLoss = kind === "loss";
    const plot = {
      width, height, legend: { show: false }, padding: [8, 26, 0, 0],
      scales: { x: { time: false }, y: { range: isLoss ? lossRange : (_, low, high) => [Math.min(0, low), (high || 1) * 1.05] } },
      axes: [
        axis(isLoss ? "" : unit, isLoss ? 26 : 30, (_, at) => at.map(short)),
        axis(isLoss ? "loss (nats per token)" : "learning rate", 62, (_, at) => at.map((v) => (isLoss ? short(v) : v === 0 ? "0" : v.toExponential(1)))),
      ],
      series: [{}, ...lines],
      cursor: {
        sync: { key: "session", setSeries: false, scales: ["x", null] },
        hover: { prox: 12, skip: [null, undefined] },
        points: { size: 7 },
        drag: { x: true, y: false, setScale: true },
      },
      hooks: {
        setCursor: isLoss ? [showValues] : [],
        setScale: [(u, key) => {
          if (key !== "x") return;
          const whole = u.data[0].length ? [u.data[0][0], u.data[0][u.data[0].length - 1]] : [0, 1];
          const { min, max } = u.scales.x;
          view.range = min <= whole[0] && max >= whole[1] ? null : [min, max];
        }],
      },
    };
    return plot;
  }

  function draw() {
    plots.forEach((plot) => plot.destroy());
    plots = [];
    const places_ = [byId("loss"), byId("rate")];
    if (series.curves.length === 0) {
      places_[0].replaceChildren(make("p", { class: "dim" }, "no loss logged yet"));
      places_[1].replaceChildren();
      return;
    }
    places_.forEach((place) => place.replaceChildren());
    const colours = hues();
    const width = Math.max(280, byId("curves").clientWidth);
    const raw = [];
    const fine = [];
    const rates = [];
    const rawLines = [];
    const fineLines = [];
    const rateLines = [];
    drawn = [];
    series.curves.forEach((curve, index) => {
      const show = !view.hidden.has(curve.name);
      const stroke = colour(colours[index]);
      const at = places(curve);
      const thickness = curve.branches ? 2.2 : 1.3;
      const common = { show, spanGaps: true, points: { show: at.length < 2 } };
      if (view.smooth > 1) {
        raw.push([at, curve.losses]);
        rawLines.push({ ...common, label: "raw", stroke: `${stroke}48`, width: 1 });
      }
      fine.push([at, smoothed(curve.losses, view.smooth)]);
      fineLines.push({ ...common, label: curve.name, stroke, width: thickness });
      rates.push([at, curve.rates]);
      rateLines.push({ ...common, label: curve.name, stroke, width: thickness });
      drawn.push({ curve, colour: colours[index] });
    });
    const height = Math.min(wide.lossHeight, Math.max(240, Math.round(width * 0.62)));
    const lossLines = [...rawLines, ...fineLines];
    drawn.forEach((line, i) => Object.assign(line, { loss: rawLines.length + i + 1, raw: rawLines.length ? i + 1 : 0, rate: i + 1 }));
    plots = [
      new uPlot(options("loss", lossLines, width, height), uPlot.join([...raw, ...fine]), places_[0]),
      new uPlot(options("rate", rateLines, width, wide.rateHeight), uPlot.join(rates), places_[1]),
    ];
    if (view.range) zoomTo(view.range);
    legend();
  }

  function zoomTo(range) {
    const asked = range;
    plots.forEach((plot) => {
      const at = plot.data[0];
      plot.setScale("x", { min: asked ? asked[0] : at[0], max: asked ? asked[1] : at[at.length - 1] });
    });
    view.range = asked;
  }

  function zoomBy(factor) {
    if (plots.length === 0) return;
    const at = plots[0].data[0];
    const { min, max } = plots[0].scales.x;
    const left = plots[0].cursor.left;
    const middle = left > 0 ? plots[0].posToVal(left, "x") : (min + max) / 2;
    const from = Math.max(at[0], middle - (middle - min) * factor);
    const to = Math.min(at[at.length - 1], middle + (max - middle) * factor);
    zoomTo(from <= at[0] && to >= at[at.length - 1] ? null : [from, to]);
  }

  // Which lines are there, what is shown of them, and what they are where the cursor stands.
  function legend() {
    const groups = new Map();
    for (const line of drawn) {
      if (!groups.has(line.curve.root)) groups.set(line.curve.root, []);
      groups.get(line.curve.root).push(line);
    }
    const at = make("div", { class: "at", id: "at" });
    const rows = [...groups.values()].map((lines) => {
      const labels = lines.map((line) => {
        const box = make("input", { type: "checkbox", checked: !view.hidden.has(line.curve.name) });
        box.addEventListener("change", () => {
          // The training of a sweep's point hides and shows its branches with it.
          const those = line.curve.branches || groups.size === 1 ? [line] : lines;
          those.forEach((each) => (box.checked ? view.hidden.delete(each.curve.name) : view.hidden.add(each.curve.name)));
          draw();
        });
        const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        const stroke = document.createElementNS("http://www.w3.org/2000/svg", "line");
        for (const [key, value] of [["x1", 0], ["x2", "100%"], ["y1", "50%"], ["y2", "50%"], ["stroke", colour(line.colour)], ["stroke-width", line.curve.branches ? 4 : 2]])
          stroke.setAttribute(key, value);
        swatch.append(stroke);
        line.output = make("output", {});
        return make("label", {}, box, swatch, make("span", {}, line.curve.title), line.output);
      });
      return make("div", { class: "group" }, ...labels);
    });
    const more = series.left_out ? [make("p", { class: "dim" }, `${series.left_out} more curves are not drawn: autoexp export --tensorboard`)] : [];
    byId("legend").replaceChildren(at, ...rows, ...more);
  }

  function showValues(plot) {
    const { idx, idxs } = plot.cursor;
    const at = byId("at");
    if (!at) return;
    at.textContent = idx === null || idx === undefined ? "" : `${view.tokens ? "tokens" : "iteration"} ${short(plot.data[0][idx])}`;
    for (const line of drawn) {
      const place = idxs ? idxs[line.loss] : null;
      const value = place === null || place === undefined ? null : plot.data[line.loss][place];
      if (line.output) line.output.textContent = value === null || value === undefined ? "" : value.toFixed(4);
    }
  }

  function pressed(button, on) {
    button.setAttribute("aria-pressed", String(on));
  }

  function controls() {
    const button = (text, label, action) => {
      const made = make("button", { type: "button", title: label, "aria-label": label }, text);
      made.addEventListener("click", () => action(made));
      return made;
    };
    const iterations = button("iterations", "show iterations", () => choose(false));
    const tokens = button("tokens", "show tokens", () => choose(true));
    function choose(on) {
      if (on !== view.tokens) view.range = null;
      view.tokens = on;
      pressed(iterations, !on);
      pressed(tokens, on);
      draw();
    }
    pressed(iterations, true);
    pressed(tokens, false);
    tokens.hidden = !series.curves.some((curve) => curve.tokens !== null);
    iterations.hidden = tokens.hidden;
    const smooth = make("input", { type: "range", min: "1", max: "61", step: "2", value: "1", id: "smooth", "aria-label": "mean over so many points" });
    smooth.addEventListener("input", () => {
      view.smooth = Number(smooth.value);
      draw();
    });
    const whole = button("all losses", "show the first losses, too", () => {
      view.whole = !view.whole;
      pressed(whole, view.whole);
      draw();
    });
    pressed(whole, false);
    const theme = button("light / dark", "change the colours", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      draw();
    });
    byId("controls").replaceChildren(
      make("fieldset", {}, iterations, tokens),
      make("fieldset", {}, button("+", "zoom in", () => zoomBy(0.5)), button("−", "zoom out", () => zoomBy(2)), button("all", "show all iterations", () => zoomTo(null))),
      make("fieldset", {}, make("label", { for: "smooth" }, "smooth"), smooth),
      make("fieldset", {}, whole, theme),
    );
  }

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);

  // A live page: what the server has is put in the places of what was there.
  let seen = null;
  async function look(where) {
    let pause = 3000;
    try {
      const answer = await fetch(where, { headers: seen ? { "If-None-Match": seen } : {}, cache: "no-store" });
      if (answer.status === 200) {
        seen = answer.headers.get("ETag");
        const found = await answer.json();
        for (const [id, html] of Object.entries(found.sections)) replace(byId(id), html);
        series = found.series;
        draw();
        if (found.over) return;
      } else if (answer.status !== 304) throw new Error(answer.statusText);
    } catch {
      pause = 15000; // the server is away: the page stays as it is
    }
    setTimeout(() => look(where), pause);
  }

  // The server has escaped what is data in it, and the page's policy lets no other script run.
  function replace(place, html) {
    const open = [...place.querySelectorAll("details")].map((part) => part.open);
    const scrolled = [...place.querySelectorAll(".events, .wide, pre")].map((part) => part.scrollTop);
    place.innerHTML = html;
    place.querySelectorAll("details").forEach((part, i) => { if (i in open) part.open = open[i]; });
    place.querySelectorAll(".events, .wide, pre").forEach((part, i) => { if (i in scrolled) part.scrollTop = scrolled[i]; });
  }

  controls();
  draw();
  dark.addEventListener("change", draw);
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(); } });
  let before = null;
  addEventListener("beforeprint", () => { before = root.dataset.theme || ""; root.dataset.theme = "light"; draw(); });
  addEventListener("afterprint", () => { if (before) root.dataset.theme = before; else delete root.dataset.theme; draw(); });
  if (root.dataset.live) setTimeout(() => look(root.dataset.live), 3000);
})();
