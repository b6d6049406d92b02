"use strict";
// Tables that sort, figures and curves of the page, from the JSON element in it. Text of
// the data only ever becomes text nodes and attributes.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  document.documentElement.classList.add("with-script");

  // ------------------------------------------------------------------------ elements

  const fill = (node, attributes, children) => {
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value != null) node.setAttribute(name, value);
    }
    node.append(...children.flat().filter((child) => child != null && child !== false));
    return node;
  };
  const el = (tag, attributes = {}, ...children) =>
    fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  const unique = (values) => [...new Set(values)];
  const fixed = (value, digits = 1) => (value == null ? "–" : value.toFixed(digits));
  const signed = (value) => (value == null ? "–" : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(1));
  const pText = (p) => (p == null ? "–" : p < 0.001 ? "< .001" : p.toFixed(3).replace(/^0/, ""));
  const headName = (head) => head || "fused";

  // ------------------------------------------------------------------------ controls

  const choose = (title, options, value, change) =>
    options.length < 2
      ? null
      : el("label", {}, el("span", {}, title),
          el("select", { onchange: (event) => change(event.target.value) },
            options.map(([key, text]) =>
              el("option", { value: key, selected: key === value }, text))));

  // Boxes for a set; `draw` gives each its sample of the figure's ink.
  const boxes = (title, options, chosen, change, draw = () => null) => {
    if (options.length < 2) return null;
    const inputs = options.map(([key]) =>
      el("input", {
        type: "checkbox", value: key, checked: chosen.has(key),
        onchange: (event) => {
          if (event.target.checked) chosen.add(key); else chosen.delete(key);
          change();
        },
      }));
    const all = (checked) => () => {
      options.forEach(([key], i) => {
        inputs[i].checked = checked;
        if (checked) chosen.add(key); else chosen.delete(key);
      });
      change();
    };
    const few = el("span", { class: "few" },
      el("button", { type: "button", onclick: all(true), "aria-label": `${title}: all` }, "all"),
      el("button", { type: "button", onclick: all(false), "aria-label": `${title}: none` }, "none"));
    return el("fieldset", { "data-boxes": title }, el("legend", {}, title, options.length > 2 && few),
      el("div", { class: "checks" },
        options.map(([key, text], i) => el("label", {}, inputs[i], draw(key), text))));
  };

  const save = (name, rows) => {
    const quoted = (cell) => {
      const text = cell == null ? "" : String(cell);
      return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const text = rows.map((row) => row.map(quoted).join(",")).join("\n") + "\n";
    const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    el("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  };

  // ------------------------------------------------------------------------- sorting

  // Missing values stay last in both directions.
  const compare = (numeric, sign) => (a, b) => {
    if (numeric) {
      const [x, y] = [parseFloat(a), parseFloat(b)];
      if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
      return sign * (x - y);
    }
    return sign * a.localeCompare(b, undefined, { numeric: true });
  };

  const sortable = (table, sorted = () => {}) => {
    const heads = [...table.querySelectorAll("thead th:not([colspan])")];
    const sort = (head) => {
      const numeric = head.classList.contains("number");
      const before = head.getAttribute("aria-sort");
      const first = numeric ? "descending" : "ascending";
      const second = numeric ? "ascending" : "descending";
      const order = before === first ? second : first;
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", order);
      const column = Number(head.dataset.column ?? head.cellIndex);
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const by = compare(numeric, order === "ascending" ? 1 : -1);
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort((a, b) => by(value(a), value(b))));
      sorted();
    };
    for (const head of heads) {
      const button = el("button", { type: "button", class: "sort", onclick: () => sort(head) });
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
    }
    return table;
  };

  const filterable = (box) => {
    const rows = [...box.querySelectorAll("tbody tr")];
    if (rows.length < 12) return;
    box.prepend(el("input", {
      type: "search", placeholder: `Filter ${rows.length} rows`, "aria-label": "Filter rows",
      oninput: (event) => {
        const wanted = event.target.value.toLowerCase();
        rows.forEach((row) => { row.hidden = !row.textContent.toLowerCase().includes(wanted); });
      },
    }));
  };

  // --------------------------------------------------------------------------- figures

  const place = new Map(data.methods.map((each, i) => [each.method, i]));
  const nameOf = new Map(data.methods.map((each) => [each.method, each.name]));
  const colour = (method) => `var(--c${place.get(method) % 8})`;
  // Form and colour both tell methods apart: 24 pairs.
  const FORMS = [
    (s) => `M${-s},0a${s},${s} 0 1,0 ${2 * s},0a${s},${s} 0 1,0 ${-2 * s},0`,
    (s) => `M${-s},${-s}h${2 * s}v${2 * s}h${-2 * s}z`,
    (s) => `M0,${-1.25 * s}L${1.2 * s},${s}H${-1.2 * s}z`,
    (s) => `M0,${-1.35 * s}L${1.35 * s},0L0,${1.35 * s}L${-1.35 * s},0z`,
    (s) => `M0,${1.25 * s}L${1.2 * s},${-s}H${-1.2 * s}z`,
    (s) => `M${-s / 2.6},${-s * 1.2}h${s / 1.3}v${s * 0.82}h${s * 0.82}v${s / 1.3}h${-s * 0.82}v${s * 0.82}h${-s / 1.3}v${-s * 0.82}h${-s * 0.82}v${-s / 1.3}h${s * 0.82}z`,
  ];
  const mark = (method, x, y, size = 4.5) =>
    svg("path", {
      class: "mark", d: FORMS[place.get(method) % FORMS.length](size),
      transform: `translate(${x},${y})`, style: `fill: ${colour(method)}`, "data-method": method,
    });
  const sample = (method) =>
    svg("svg", { width: 14, height: 14, viewBox: "-7 -7 14 14", "aria-hidden": "true" }, mark(method, 0, 0));

  const ticks = (low, high, count) => {
    const raw = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((each) => each * power >= 0.8 * raw);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9; i++) found.push(i * step);
    return found;
  };
  const scale = (low, high, from, to) => (value) => from + ((value - low) / (high - low || 1)) * (to - from);

  const tip = document.getElementById("tip");
  const say = (text, event) => {
    tip.textContent = text;
    tip.hidden = false;
    const right = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, right)}px`;
    tip.style.top = `${Math.max(8, event.clientY - tip.offsetHeight - 12)}px`;
  };
  const hush = () => { tip.hidden = true; };

  // Width for a picture; a page that is not shown yet has none.
  const inner = (figure) => Math.max(220, figure.clientWidth - 28);
  const redrawn = [];
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    requestAnimationFrame(() => redrawn.forEach((draw) => draw()));
  });

  // --------------------------------------------------------------------------- results

  const results = () => {
    const home = document.getElementById("results-app");
    const [tableHome, forestHome, controls] = [el("div"), el("div"), el("div", { class: "controls" })];
    home.append(controls, tableHome, forestHome);
    const first = data.tables[0];
    const state = {
      rule: first.rule, evaluation: first.evaluation, head: "", dataset: null,
      reference: data.reference, columns: new Set(["difference"]), figure: "mean", order: null,
    };
    const table = () =>
      data.tables.find((each) => ["rule", "evaluation", "head"].every((key) => each[key] === state[key]))
      ?? data.tables.find((each) => each.rule === state.rule && each.evaluation === state.evaluation);
    const set = (key) => (value) => { state[key] = value; state.order = null; draw(); };

    const rowsOf = (found) => {
      const differences = found.differences[state.reference] ?? [];
      return found.rows.map((values, i) => {
        const row = Object.fromEntries(found.columns.map((name, k) => [name, values[k]]));
        const [difference, dLow, dHigh, p, mcnemar] = differences[i] ?? [];
        return { ...row, difference, dLow, dHigh, p, mcnemar, key: `${row.modalities}\n${row.method}` };
      });
    };
    const heading = (row) => (row.target === "average" ? "average" : `${row.sources} → ${row.target}`);

    // Each: title, what a cell shows, what it is sorted by.
    const COLUMNS = {
      mean: ["Top-1 %", (r) => (r.mean == null ? el("span", { class: "missing" }, "missing") : meanCell(r)), (r) => r.mean],
      interval: ["95 % interval", (r) => (r.mean == null ? "–" : `[${fixed(r.low)}, ${fixed(r.high)}]`), (r) => r.low],
      difference: ["", (r) => differenceCell(r), (r) => r.difference],
      dInterval: ["Its 95 % interval", (r) => (r.difference == null ? "–" : `[${signed(r.dLow)}, ${signed(r.dHigh)}]`), (r) => r.dLow],
      p: ["p (Holm)", (r) => pText(r.p), (r) => r.p],
      mcnemar: ["p (McNemar)", (r) => pText(r.mcnemar), (r) => r.mcnemar],
      seeds: ["Seeds", (r) => `${r.seeds}`, (r) => r.seeds],
      N: ["N", (r) => `${r.N}`, (r) => r.N],
      epochs: ["Epochs", (r) => r.epochs || "–", (r) => r.epochs],
    };
    const meanCell = (r) => {
      const text = fixed(r.mean) + (r.std == null ? "" : ` ± ${fixed(r.std)}`);
      const tag = r.best && r.best_supported ? "strong" : r.second && r.second_supported ? "u" : "span";
      const few = r.seeds < r.wanted && el("small", { class: "block" }, `${r.seeds} of ${r.wanted} seeds`);
      return el("span", {}, el(tag, {}, text), few);
    };
    const differenceCell = (r) => {
      if (r.difference == null) return "–";
      return el("span", { class: r.p < 0.05 ? "apart" : null }, signed(r.difference) + (r.p < 0.05 ? " *" : ""));
    };
    const hover = (r) => (r.mean == null ? null : [
      `${r.name}, ${heading(r)}`,
      `${fixed(r.mean)} % [${fixed(r.low)}, ${fixed(r.high)}], 95 % over ${r.covers}`,
      r.difference == null ? null
        : `${signed(r.difference)} [${signed(r.dLow)}, ${signed(r.dHigh)}] against ${nameOf.get(state.reference)}, Holm p ${pText(r.p)}`,
      `N = ${r.N}, ${r.seeds} seeds, epochs ${r.epochs}`,
    ].filter(Boolean).join("\n"));

    const drawTable = (found, rows) => {
      const against = found.differences[state.reference] !== undefined;
      const wanted = ["mean", ...Object.keys(COLUMNS).filter((name) => name !== "mean" && state.columns.has(name))]
        .filter((name) => against || !["difference", "dInterval", "p", "mcnemar"].includes(name));
      const heads = unique(rows.map(heading));
      const keys = unique(rows.map((row) => row.key));
      const blocks = unique(rows.map((row) => row.modalities)).length > 1;
      const left = blocks ? ["Method", "Modalities"] : ["Method"];
      const cells = new Map(rows.map((row) => [`${row.key}\n${heading(row)}`, row]));
      const title = (name) => (name === "difference" ? `Above ${nameOf.get(state.reference)}` : COLUMNS[name][0]);
      const single = wanted.length === 1;
      const count = (head) => {
        const counts = unique(rows.filter((r) => heading(r) === head && r.N).map((r) => r.N)).sort((a, b) => a - b);
        return el("small", { class: "block" }, `N = ${counts.length > 1 ? `${counts[0]} to ${counts.at(-1)}` : counts[0] ?? 0}`);
      };
      const top = el("tr", {},
        left.map((text, i) => el("th", { scope: "col", rowspan: single ? null : 2, "data-column": i }, text)),
        heads.map((head, i) =>
          single
            ? el("th", { scope: "col", class: "number", "data-column": left.length + i }, head, count(head))
            : el("th", { scope: "colgroup", class: "band start", colspan: wanted.length }, head, count(head))));
      const below = single ? null : el("tr", {}, heads.flatMap((_, i) => wanted.map((name, k) =>
        el("th", {
          scope: "col", class: `number${k ? "" : " start"}`, "data-column": left.length + i * wanted.length + k,
        }, title(name)))));
      const body = el("tbody", {}, keys.map((key) => {
        const any = rows.find((row) => row.key === key);
        return el("tr", { "data-key": key, "data-method": any.method, class: any.method === state.reference ? "reference-row" : null },
          el("th", { scope: "row" }, any.name, against && any.method === state.reference && el("small", { class: "block" }, "reference")),
          blocks && el("td", {}, any.modalities),
          heads.flatMap((head) => wanted.map((name, k) => {
            const row = cells.get(`${key}\n${head}`) ?? { mean: null };
            const by = COLUMNS[name][2](row);
            return el("td", {
              class: `number${k || single ? "" : " start"}`, "data-value": by ?? "", "data-hover": hover(row),
            }, COLUMNS[name][1](row) ?? "–");
          })));
      }));
      const shown = el("table", { class: "results-table", "aria-describedby": "results-caption" },
        el("thead", {}, top, below), body);
      sortable(shown, () => {
        state.order = [...body.rows].map((row) => row.dataset.key);
        drawForest(rows, against);
      });
      body.addEventListener("pointermove", (event) => {
        const text = event.target.closest("[data-hover]")?.dataset.hover;
        if (text) say(text, event); else hush();
      });
      body.addEventListener("pointerleave", hush);
      tableHome.replaceChildren(
        el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Results" }, shown),
        el("p", { class: "caption", id: "results-caption" },
          el("b", {}, `${state.dataset}${isOracle() ? " (oracle)" : ""}, ${headName(found.head)}. `), found.caption,
          ` 95 % intervals: in a column of their own and in the figure; over ${unique(rows.map((r) => r.covers).filter(Boolean)).join(" or ")}.`,
          against && ` Above ${nameOf.get(state.reference)}: percentage points on the same clips; * where Holm's p over the methods of the column is below .05.`),
        ...notes(found),
        el("p", {}, el("button", {
          type: "button", class: "plain", onclick: () => save(
            `${state.evaluation}_${state.rule}_${headName(found.head).replace("/", "-")}.csv`,
            [[...found.columns, "reference", "difference", "difference_low", "difference_high", "p_holm", "mcnemar"],
              ...found.rows.map((row, i) => [...row, against ? state.reference : "",
                ...(against ? found.differences[state.reference][i] : [])])]),
        }, "Save this table as CSV")));
    };
    const isOracle = () => data.rules.find((rule) => rule.key === state.rule).leaking;
    const notes = (found) => [
      ...found.notes.map((note) => el("p", { class: "note" }, note)),
      found.missing.length ? el("details", {},
        el("summary", {}, `Missing from this table: ${found.missing.length} of the runs`),
        el("ul", {}, found.missing.map((each) => el("li", {}, each)))) : null,
    ].filter(Boolean);

    const drawForest = (rows, against) => {
      const difference = state.figure === "difference" && against;
      const shown = rows.filter((row) => (difference ? row.difference : row.mean) != null);
      const part = difference ? ["dLow", "difference", "dHigh"] : ["low", "mean", "high"];
      const [low, high] = [Math.min(...shown.map((r) => r[part[0]])), Math.max(...shown.map((r) => r[part[2]]))];
      const pad = 0.04 * (high - low || 1);
      const domain = [difference ? Math.min(low - pad, 0) : low - pad, difference ? Math.max(high + pad, 0) : high + pad];
      const order = state.order ?? unique(rows.map((row) => row.key));
      const heads = unique(rows.map(heading));
      const panels = el("div", { class: "panels", id: "forest" });
      const what = difference ? `percentage points above ${nameOf.get(state.reference)}` : "top-1 %";
      forestHome.replaceChildren(
        el("h3", {}, "Intervals"),
        el("div", { class: "controls" }, choose("Show", [["mean", "accuracy"], ...(against ? [["difference", `above ${nameOf.get(state.reference)}`]] : [])],
          difference ? "difference" : "mean", (value) => { state.figure = value; drawForest(rows, against); })),
        panels,
        el("p", { class: "note" }, `Points with 95 % intervals, ${what}; rows as the table is sorted. Intervals of two methods may overlap although their paired difference is clear: the table's p is the test.`));
      const homes = heads.map((head) => el("figure", { class: "panel" }, el("figcaption", {}, head)));
      panels.append(...homes); // all, before widths are asked for
      heads.forEach((head, i) => {
        const own = order.map((key) => rows.find((row) => row.key === key && heading(row) === head)).filter(Boolean);
        homes[i].append(forest(own, part, domain, inner(homes[i]), difference, rows));
      });
    };
    const forest = (own, part, domain, size, difference, rows) => {
      const blocks = unique(rows.map((row) => row.modalities)).length > 1;
      const step = blocks ? 34 : 25;
      const label = Math.min(0.38 * size, 24 + 7 * Math.max(...own.map((r) => Math.max(r.name.length, blocks ? r.modalities.length * 0.9 : 0))));
      const [x0, x1, bottom] = [label, size - 48, own.length * step + 6];
      const x = scale(...domain, x0, x1);
      const picture = svg("svg", { width: size, height: bottom + 24, role: "img", "aria-label": `Intervals of ${own.length} methods, ${heading(own[0])}; the table has the numbers` });
      for (const tick of ticks(...domain, Math.max(2, (x1 - x0) / 30))) {
        picture.append(
          svg("line", { class: "axis", x1: x(tick), x2: x(tick), y1: 0, y2: bottom }),
          svg("text", { x: x(tick), y: bottom + 16, "text-anchor": "middle" }, String(+tick.toFixed(6))));
      }
      const reference = blocks ? null : own.find((row) => row.method === state.reference);
      const base = difference ? 0 : reference?.mean;
      if (base != null) picture.append(svg("line", { class: "zero", x1: x(base), x2: x(base), y1: 0, y2: bottom }));
      own.forEach((row, i) => {
        const y = i * step + step / 2 + 3;
        const fits = Math.floor((label - 10) / 6.6);
        const cut = (text) => (text.length > fits ? text.slice(0, fits - 1) + "…" : text);
        picture.append(svg("text", { class: "label", x: 0, y: y + (blocks ? -2 : 4) }, svg("title", {}, row.name), cut(row.name)));
        if (blocks) picture.append(svg("text", { x: 0, y: y + 12, style: "font-size: 10.5px" }, cut(row.modalities)));
        const [a, b, c] = part.map((name) => row[name]);
        if (b == null) {
          picture.append(svg("text", { x: size, y: y + 4, "text-anchor": "end" }, "–"));
          return;
        }
        const group = svg("g", { "data-method": row.method, onpointermove: (event) => say(hover(row), event), onpointerleave: hush },
          svg("rect", { x: x0, y: y - step / 2, width: x1 - x0, height: step, fill: "transparent" }),
          svg("line", { x1: x(a), x2: x(c), y1: y, y2: y, style: `stroke: ${colour(row.method)}; stroke-width: 2` }),
          mark(row.method, x(b), y, 5));
        picture.append(group, svg("text", { class: "label", x: size, y: y + 4, "text-anchor": "end" }, difference ? signed(b) : fixed(b)));
      });
      return picture;
    };

    const draw = () => {
      const found = table();
      state.head = found.head;
      const rows = rowsOf(found);
      const datasets = unique(rows.map((row) => row.dataset));
      if (!datasets.includes(state.dataset)) state.dataset = datasets[0] ?? null;
      const heads = data.tables.filter((each) => each.rule === state.rule && each.evaluation === state.evaluation && !each.problem);
      const compared = Object.keys(found.differences);
      if (compared.length && !compared.includes(state.reference)) state.reference = compared[0];
      const against = compared.length > 0;
      const optional = [["interval", "interval"], ["difference", "difference"], ["dInterval", "its interval"], ["p", "p"],
        ["mcnemar", "McNemar"], ["seeds", "seeds"], ["N", "N"], ["epochs", "epochs"]]
        .filter(([name]) => against || ["interval", "seeds", "N", "epochs"].includes(name));
      controls.replaceChildren(...[
        choose("Checkpoint chosen by", data.rules.map((rule) => [rule.key, rule.leaking ? `${rule.key} (sees the target)` : rule.key]), state.rule, set("rule")),
        choose("Tested on", data.evaluations.map((each) => [each.key, each.name]), state.evaluation, set("evaluation")),
        choose("Head", heads.map((each) => [each.head, headName(each.head)]), state.head, set("head")),
        choose("Dataset", datasets.map((each) => [each, each]), state.dataset, set("dataset")),
        choose("Compare with", compared.map((method) => [method, nameOf.get(method)]), state.reference, set("reference")),
        found.problem ? null : boxes("Columns", optional, state.columns, () => draw()),
      ].filter(Boolean));
      if (found.problem) {
        tableHome.replaceChildren(el("p", { class: "problem" }, found.problem));
        forestHome.replaceChildren();
        return;
      }
      const own = rows.filter((row) => row.dataset === state.dataset);
      const shown = state.dataset == null ? rows : own;
      drawTable(found, shown);
      drawForest(shown, found.differences[state.reference] !== undefined);
    };
    draw();
    redrawn.push(draw);
  };

  // --------------------------------------------------------------------------- classes

  const classes = () => {
    const home = document.getElementById("classes-app");
    const [controls, shown] = [el("div", { class: "controls" }), el("div")];
    home.append(controls, shown);
    const column = (each) => [each.dataset, each.modalities, `${each.sources} → ${each.target}`].join(", ");
    const state = { rule: data.classes[0].rule, evaluation: data.classes[0].evaluation, column: column(data.classes[0]), method: data.classes[0].method };
    const set = (key) => (value) => { state[key] = value; draw(); };
    const draw = () => {
      const ruled = data.classes.filter((each) => each.rule === state.rule && each.evaluation === state.evaluation);
      const columns = unique(ruled.map(column));
      if (!columns.includes(state.column)) state.column = columns[0];
      const own = ruled.filter((each) => column(each) === state.column);
      const chosen = own.find((each) => each.method === state.method) ?? own[0];
      controls.replaceChildren(...[
        choose("Checkpoint chosen by", unique(data.classes.map((each) => each.rule)).map((rule) => [rule, rule]), state.rule, set("rule")),
        choose("Tested on", data.evaluations.map((each) => [each.key, each.name]), state.evaluation, set("evaluation")),
        choose("Target", columns.map((each) => [each, each]), state.column, set("column")),
        choose("Confusions of", own.map((each) => [each.method, nameOf.get(each.method)]), chosen?.method, set("method")),
      ].filter(Boolean));
      shown.replaceChildren(...(chosen ? [perClass(own), matrix(chosen)] : [el("p", { class: "problem" }, "No run has such predictions.")]));
    };
    const share = (right, clips) => (clips ? (100 * right) / clips : null);
    const perClass = (own) => {
      const names = own[0].classes;
      const most = Math.max(...own.map((each) => Math.max(...each.clips)));
      const table = el("table", {},
        el("caption", {}, `Accuracy of each class in percent, fused head, over all seeds; up to ${most} predictions of a class.`),
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Class"), el("th", { scope: "col", class: "number" }, "Predictions"),
          own.map((each) => el("th", { scope: "col", class: "number" }, nameOf.get(each.method))))),
        el("tbody", {}, names.map((name, i) => el("tr", {},
          el("th", { scope: "row" }, name),
          el("td", { class: "number" }, String(Math.max(...own.map((each) => each.clips[i])))),
          own.map((each) => {
            const value = share(each.right[i], each.clips[i]);
            return el("td", { class: "number heat", "data-value": value ?? "", style: `--share: ${value ?? 0}` }, fixed(value, 0));
          })))));
      return el("div", { class: "scroll tall", tabindex: 0, role: "region", "aria-label": "Accuracy of each class" }, sortable(table));
    };
    const matrix = (each) => {
      if (!each.matrix) return el("p", { class: "note" }, `${each.classes.length} classes are too many for a matrix of confusions.`);
      const table = el("table", { class: "confusion", style: `--count: ${each.classes.length}` },
        el("caption", {}, `Confusions of ${nameOf.get(each.method)}: of the clips of each row's class, percent that went to each column's.`),
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Class ↓ taken for →"),
          each.classes.map((name) => el("th", { scope: "col", class: "number" }, name)))),
        el("tbody", {}, each.matrix.map((row, i) => el("tr", {}, el("th", { scope: "row" }, each.classes[i]),
          row.map((count, k) => {
            const value = share(count, each.clips[i]);
            return el("td", {
              class: `number heat${i === k ? " right" : ""}`, style: `--share: ${value ?? 0}`, title: `${count} of ${each.clips[i]}`,
            }, count ? fixed(value, 0) : "·");
          })))));
      return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Confusions" }, table);
    };
    draw();
  };

  // ---------------------------------------------------------------------------- curves

  const DASHES = ["", "7 3", "2 3", "9 3 2 3", "1 4", "12 4", "5 2 1 2 1 2", "3 6"];
  const ROLES = { source: "sources, validation", target: "target, unseen" };

  const curves = () => {
    const home = document.getElementById("curves-app");
    const [controls, figures] = [el("div", { class: "controls" }), el("div")];
    home.append(controls, figures);
    const every = data.curves.map((each) => ({ ...each, ...pick(data.runs[each.run]) }));
    const groups = unique(every.map((each) => each.group));
    const methods = data.methods.map((each) => each.method).filter((m) => every.some((each) => each.method === m));
    const seeds = unique(every.map((each) => each.seed)).sort((a, b) => a - b);
    const heads = unique(["", ...every.flatMap((each) => [...Object.keys(each.source), ...Object.keys(each.target)])]);
    const roles = Object.keys(ROLES).filter((role) => every.some((each) => Object.keys(each[role]).length));
    const dash = (head) => DASHES[heads.indexOf(head) % DASHES.length];
    const state = {
      groups: new Set(groups.slice(0, 3)), methods: new Set(methods), seeds: new Set(seeds.map(String)),
      heads: new Set([""]), roles: new Set(roles), lines: seeds.length > 1 ? "both" : "seeds", rule: data.rules[0].key,
    };

    const lines = (group, role) => {
      const own = every.filter((each) => each.group === group && state.methods.has(each.method) && state.seeds.has(String(each.seed)));
      const found = [];
      for (const head of heads.filter((each) => state.heads.has(each))) {
        for (const method of methods) {
          const runs = own.filter((each) => each.method === method && each[role][head]);
          const single = runs.map((each) => ({
            method, head, seed: each.seed, chosen: each.chosen[state.rule],
            points: each.epochs.map((epoch, i) => [epoch, each[role][head][i]]).filter(([, value]) => value != null),
          }));
          if (state.lines !== "mean") found.push(...single);
          if (state.lines !== "seeds" && runs.length) found.push({ method, head, seed: null, chosen: null, points: mean(single) });
        }
      }
      return found;
    };
    const mean = (single) => {
      const values = new Map();
      for (const { points } of single) {
        for (const [epoch, value] of points) values.set(epoch, [...(values.get(epoch) ?? []), value]);
      }
      return [...values].sort((a, b) => a[0] - b[0]).map(([epoch, own]) => [epoch, own.reduce((a, b) => a + b) / own.length]);
    };
    const lineName = (line) => `${nameOf.get(line.method)}, ${headName(line.head)}, ${line.seed == null ? "mean of seeds" : `seed ${line.seed}`}`;

    const panel = (group, role, own, size, domain) => {
      const [x0, x1, y0, y1] = [34, size - 10, 250, 10];
      const epochs = own.flatMap((line) => line.points.map(([epoch]) => epoch));
      const [from, to] = [Math.min(...epochs), Math.max(...epochs)];
      const x = from === to ? () => (x0 + x1) / 2 : scale(from, to, x0 + 6, x1);
      const y = scale(...domain, y0, y1);
      const picture = svg("svg", { width: size, height: 292, role: "img", "aria-label": `${group}: accuracy on the ${ROLES[role]}, over epochs, ${own.length} lines` });
      for (const tick of ticks(...domain, 6)) {
        picture.append(svg("line", { class: "axis", x1: x0, x2: x1, y1: y(tick), y2: y(tick) }),
          svg("text", { x: x0 - 6, y: y(tick) + 4, "text-anchor": "end" }, String(+tick.toFixed(6))));
      }
      for (const tick of ticks(from, to, Math.min(to - from || 1, size / 60)).filter(Number.isInteger)) {
        picture.append(svg("text", { x: x(tick), y: y0 + 17, "text-anchor": "middle" }, String(tick)));
      }
      picture.append(svg("text", { x: (x0 + x1) / 2, y: y0 + 35, "text-anchor": "middle" }, "epoch"));
      const near = [];
      for (const line of own) {
        const thin = line.seed != null && state.lines === "both";
        const path = svg("path", {
          class: "line", d: "M" + line.points.map(([epoch, value]) => `${x(epoch).toFixed(1)},${y(value).toFixed(1)}`).join("L"),
          style: `stroke: ${colour(line.method)}; stroke-width: ${thin ? 1.1 : 2.2}; opacity: ${thin ? 0.5 : 1}`,
          "stroke-dasharray": dash(line.head), "data-method": line.method, "data-seed": line.seed ?? "mean", "data-head": line.head,
        });
        picture.append(path);
        for (const [epoch, value] of line.points) {
          near.push([x(epoch), y(value), path, `${lineName(line)}\nepoch ${epoch}: ${fixed(value)} %`]);
          if (line.points.length === 1 || (line.chosen === epoch && line.seed != null)) picture.append(mark(line.method, x(epoch), y(value), 4));
        }
      }
      const cool = () => picture.querySelectorAll(".hot").forEach((each) => each.classList.remove("hot"));
      picture.addEventListener("pointermove", (event) => {
        const box = picture.getBoundingClientRect();
        const distance = ([px, py]) => Math.hypot(px - event.clientX + box.left, py - event.clientY + box.top);
        const best = near.reduce((a, b) => (distance(b) < distance(a) ? b : a));
        cool();
        if (distance(best) > 36) return hush();
        best[2].classList.add("hot");
        say(best[3], event);
      });
      picture.addEventListener("pointerleave", () => { cool(); hush(); });
      return picture;
    };

    const draw = () => {
      figures.replaceChildren();
      const leaking = data.rules.find((rule) => rule.key === state.rule).leaking;
      const about = { source: leaking ? "" : "chooses the checkpoint under the rule source", target: leaking ? "the oracle chooses by this curve" : "not used to choose a checkpoint" };
      for (const group of groups.filter((each) => state.groups.has(each))) {
        const shown = roles.filter((role) => state.roles.has(role)).map((role) => [role, lines(group, role)]).filter(([, own]) => own.some((line) => line.points.length));
        if (!shown.length) continue;
        const values = shown.flatMap(([, own]) => own.flatMap((line) => line.points.map(([, value]) => value)));
        const [low, high] = [Math.min(...values), Math.max(...values)];
        const pad = 0.05 * (high - low) || 1;
        const pair = el("div", { class: "pairs" });
        figures.append(pair);
        const homes = shown.map(([role]) => {
          const figure = el("figure", { class: "panel", "data-role": role }, el("figcaption", {}, `${group}: ${ROLES[role]}`, el("small", {}, about[role] || " ")));
          pair.append(figure);
          return figure;
        });
        shown.forEach(([role, own], i) => homes[i].append(panel(group, role, own.filter((line) => line.points.length), inner(homes[i]), [Math.max(0, low - pad), Math.min(100, high + pad)])));
      }
      if (!figures.children.length) figures.append(el("p", { class: "problem" }, "Nothing is chosen that has a curve."));
    };
    const line = (head) => svg("svg", { width: 26, height: 8, "aria-hidden": "true" },
      svg("line", { x1: 0, x2: 26, y1: 4, y2: 4, style: "stroke: currentColor; stroke-width: 2", "stroke-dasharray": dash(head) }));
    const set = (key) => (value) => { state[key] = value; draw(); };
    controls.append(...[
      boxes("Methods", methods.map((m) => [m, nameOf.get(m)]), state.methods, draw, sample),
      boxes("Seeds", seeds.map((seed) => [String(seed), String(seed)]), state.seeds, draw),
      boxes("Heads", heads.map((head) => [head, headName(head)]), state.heads, draw, line),
      boxes("Measured on", roles.map((role) => [role, ROLES[role]]), state.roles, draw),
      boxes("Runs", groups.map((group) => [group, group]), state.groups, draw),
      seeds.length > 1 && choose("Lines", [["both", "seeds and their mean"], ["mean", "mean alone"], ["seeds", "seeds alone"]], state.lines, set("lines")),
      choose("Mark the epoch chosen by", data.rules.map((rule) => [rule.key, rule.key]), state.rule, set("rule")),
      el("button", {
        type: "button", class: "plain", onclick: () => save("curves.csv", [["runs", "role", "method", "head", "seed", "epoch", "top1"],
          ...[...state.groups].flatMap((group) => [...state.roles].flatMap((role) => lines(group, role).flatMap((each) =>
            each.points.map((point) => [group, role, each.method, headName(each.head), each.seed ?? "mean", ...point]))))]),
      }, "Save these curves as CSV"),
    ].filter(Boolean));
    home.append(el("p", { class: "note" }, "Top-1 % after each epoch. Forms on the lines mark the chosen epoch; line styles are heads, colours are methods. The target's curve is only there where it was watched, and serves to look at."));
    draw();
    redrawn.push(draw);
  };
  const pick = ({ method, seed, group }) => ({ method, seed, group });

  // ------------------------------------------------------------------------------ page

  document.querySelectorAll("table.sortable").forEach((table) => sortable(table));
  document.querySelectorAll(".filtered").forEach(filterable);
  if (data.tables.length) results();
  if (data.classes.length) classes();
  if (data.curves.length) curves();
})();
